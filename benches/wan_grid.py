"""Chains of stages over the laboratory's wide area network, as `./bench wan` measures them."""

import statistics

import pipelines
from failover import SUBJECTS
from grid import MODEL, wait_until

LAYERS = 30
# Of an answer whose laps are measured.
TOKENS = 40
# Tokens that come within this time of each other are of one lap: the shortest lap here takes longer.
ONE_LAP_S = 0.003
FACTS = "The lighthouse stands on a rock. The keeper counts the ships that pass. At night the lamp turns. "


def cuts(stages):
    ends = [round(LAYERS * at / stages) for at in range(stages + 1)]
    return [f"{start}..{end}" for start, end in zip(ends, ends[1:])]


def chain(wan, ranges, threads=1, draft=None):
    """A gateway on host 0, and a node on a host of its own for each range; the last one may have a draft model."""
    env = {"OPENGRID_SERVE_THREADS": str(threads), "OPENGRID_SERVE_SLOTS": "2", "OPENGRID_SERVE_CONTEXT_TOKENS": "1024"}
    gateway = wan.add_at(0, "gateway")
    nodes = []
    for host, layers in enumerate(ranges, start=1):
        options = ("--layers", layers, "--draft", draft) if draft and host == len(ranges) else ("--layers", layers)
        node = wan.add_at(host, f"stage-{layers}-{host}", serve=MODEL, join=gateway, env=env, options=options)
        with wan.at(host):
            wait_until(f"{node.name} is ready", node.serves, 60)
        nodes.append(node)
    with wan.at(0):
        pipelines.wait_for_stages(gateway, len(nodes))
    return gateway, nodes


def ask(wan, gateway, subject="", on_chunk=None, tokens=TOKENS, **changes):
    with wan.at(0):
        answered = pipelines.ask(gateway, subject, on_chunk=on_chunk, tokens=tokens, **changes)
    if not answered.complete:
        raise SystemExit(f"an answer failed: {answered.status} {answered.error}")
    return answered


def story(wan, gateway, number, **changes):
    """Free, at temperature 0.8."""
    return ask(wan, gateway, SUBJECTS[number % len(SUBJECTS)], seed=number, **changes)


def laps(answered):
    """Their lengths in seconds, without the first, which is the prompt's."""
    starts = [chunk.at for before, chunk in zip(answered.chunks, answered.chunks[1:]) if chunk.at - before.at > ONE_LAP_S]
    return [later - earlier for earlier, later in zip(starts, starts[1:])]


def lap_s(wan, gateway, rounds):
    """Median over laps with and without guesses; stories have few."""
    return statistics.median(lap for number in range(rounds) for lap in laps(story(wan, gateway, number)))


def restart(wan, gateway, node, count):
    """A node that was killed comes back, and the gateway knows all `count` stages."""
    node.process.wait(timeout=10)
    with wan.at(node.host):
        node.restart()
        wait_until(f"{node.name} is ready", node.serves, 60)
    with wan.at(0):
        pipelines.wait_for_stages(gateway, count)
