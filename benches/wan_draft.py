"""A draft model beside the last of two stages over a wide area network. The only model here is its own draft model: that is
the limit of what a draft model can do (its guesses come true), not what a smaller one would.
"""

import wan as laboratory
from figures import Figure, plain
from grid import MODEL
from wan_grid import chain, cuts, story
from wan_guesses import STORIES, TOKENS

STAGES, RTT_MS = 2, 100


def figures(options, say):
    """Stories at T = 0.8."""
    speeds, right = {}, 0.0
    for draft in (None, MODEL):
        with laboratory.Wan(hosts=STAGES + 1, models_dir=options.store) as wan:
            gateway, nodes = chain(wan, cuts(STAGES), draft=draft)
            wan.set(delay_us=RTT_MS * 500)
            story(wan, gateway, STORIES)
            before = guesses(wan, nodes[-1])
            answers = [story(wan, gateway, number, tokens=TOKENS) for number in range(STORIES)]
            made, true = (after - start for start, after in zip(before, guesses(wan, nodes[-1])))
        tokens = sum(answer.usage["completion_tokens"] - 1 for answer in answers)
        speeds[draft] = tokens / sum(answer.chunks[-1].at - answer.chunks[0].at for answer in answers)
        right = true / max(1, made)
        say(f"{STAGES} stages, {RTT_MS} ms, stories, draft model {draft}: {speeds[draft]:.2f} tok/s, {true:.0f} of {made:.0f} true")
    name = f"{STAGES} stages, {RTT_MS} ms, stories, the served model as its own draft model (limit case)"
    yield plain(f"{name}: its guesses that came true", right, "of all")
    without, found = speeds[None], speeds[MODEL]
    yield Figure(f"{name}: of the speed without", found, "tok/s", without, found / without)


def guesses(wan, last):
    with wan.at(last.host):
        metrics = last.metrics()
    return [metrics[f"opengrid_node_draft_model_{name}_total"] for name in ("guesses", "guesses_true")]
