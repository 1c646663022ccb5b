"""Guesses at the next tokens, over a wide area network: what they gain where much of the answer stands in the prompt, and
what they cost where they are of no use.

With the share `a` of tokens that were guessed right, the limit without loss is F* = 1 / ((1 - a) L + a t): L the floor of
a lap, t what the slowest stage takes for a token. A token that was guessed right lets the next one follow after t, one that
was not after L. The first token of an answer is of the second kind: nothing is guessed for it, and the lap behind it is
measured like any other. Figures in which it does not count are printed beside it, without a bar.
"""

from figures import Figure, plain
from wan_grid import ask, story

TOKENS = 96
# What the small default model can do: it copies at temperature 0, and quotes.
TEXTS = (
    "The museum opens at nine and closes at five. Visitors leave their coats and bags with the porter. "
    "On Sundays a guide shows the clock that Brandt built in 1720 for the old town hall.",
    "Please send the two boxes to the office in Leeds before Thursday. The green one holds the letters of the society, "
    "the grey one the maps that Mrs Dale bought at the auction last spring.",
    "Our summer house stands by a lake in the north. In the morning my sister rows to the island, where the herons nest, "
    "and comes back with wet shoes and a full basket.",
)
LETTER = (
    "Dear Mr Harlow, thank you for your letter of the second of May. The parcel left our house on Monday and will be "
    "with you on Friday."
)
EDITING = [f"Repeat this text:\n\n{text}" for text in TEXTS]
EXTRACTION = [f"{LETTER} Which sentence says when the parcel comes? Quote it.", f"{TEXTS[0]} Who built the clock? Quote the sentence."]
# Any: an answer of these alone, drawn nearly at random. Pairs of them were often seen before and say nothing of the next.
WORDS = range(1_000, 1_016)
AT_RANDOM = {"logit_bias": {str(token): 100 for token in WORDS}, "temperature": 2, "frequency_penalty": 2, "seed": 7}
STORIES = 2
COUNTS = ("laps_without_guesses", "laps_missed", "guesses_true")
# Of F0, on editing, by stages.
EDITING_BARS = {4: 2.8, 8: 4.0}
USELESS_BAR, LIMIT_BAR = 0.97, 0.85


def figures(wan, gateway, last, stages, rtt_ms, compute_s, say):
    lap_s = compute_s + stages * rtt_ms / 2000
    interval_s = compute_s / stages

    def quoting(prompts):
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            yield ask(wan, gateway, tokens=TOKENS, temperature=0, messages=messages, ignore_eos=False)

    kinds = {
        "editing": lambda: quoting(EDITING),
        "extraction": lambda: quoting(EXTRACTION),
        "stories": lambda: (story(wan, gateway, number, tokens=TOKENS) for number in range(STORIES)),
        "words at random": lambda: (ask(wan, gateway, tokens=TOKENS, **AT_RANDOM) for _ in range(1)),
    }
    for kind, answers in kinds.items():
        tokens_per_s, right, right_of_others = measure(wan, last, answers())
        limit, limit_of_others = (1 / ((1 - a) * lap_s + a * interval_s) for a in (right, right_of_others))
        say(f"{stages} stages, {kind}: {tokens_per_s:.2f} tok/s, a = {right:.2f}, F0 = {1 / lap_s:.2f}, F* = {limit:.2f}")
        name = f"{stages} stages, {rtt_ms} ms, {kind}"
        yield plain(f"{name}: guessed right, a", right, "of places")
        least = USELESS_BAR if kind == "words at random" else EDITING_BARS.get(stages) if kind == "editing" else None
        yield of(f"{name}: of F0", tokens_per_s, 1 / lap_s, least)
        yield of(f"{name}: of F*", tokens_per_s, limit, LIMIT_BAR)
        yield plain(f"{name}: a without the first tokens", right_of_others, "of places")
        yield of(f"{name}: of F* with that a", tokens_per_s, limit_of_others, None)


def of(name, value, reference, least):
    ratio = value / reference
    bar, holds = (f">= {least:g} of the reference", ratio >= least) if least else ("", None)
    return Figure(name, value, "tok/s", reference, ratio, bar, holds)


def counts(wan, last):
    with wan.at(last.host):
        metrics = last.metrics()
    return [metrics[f"opengrid_node_{name}_total"] for name in COUNTS]


def measure(wan, last, answers):
    """Tokens per second over all the answers, and the share of tokens that the last stage guessed right meanwhile; and of
    those that are not the first of an answer."""
    before, tokens, seconds, answered_count = counts(wan, last), 0, 0.0, 0
    for answered in answers:
        answered_count += 1
        tokens += answered.usage["completion_tokens"] - 1
        seconds += answered.chunks[-1].at - answered.chunks[0].at
    without, missed, right = (after - start for start, after in zip(before, counts(wan, last)))
    places = right + missed + without
    return tokens / seconds, right / max(1, places), right / max(1, places - answered_count)
