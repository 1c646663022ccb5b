"""Grids whose nodes hold a third of the model each: shared by the tests and the benchmarks."""

import random
import signal
import time
from dataclasses import dataclass

import client
from failover import body
from grid import MODEL, wait_until

CUTS = ("0..10", "10..20", "20..30")
TOKENS = 200


def add_stages(grid, gateway, cuts=CUTS, copies=1, env=None, **options):
    """A node for each of the cuts, as often as `copies` says; returns them when the gateway knows all."""
    one_thread = {"OPENGRID_SERVE_THREADS": "1"} | (env or {})
    nodes = []
    for copy in range(copies):
        for cut in cuts:
            name = f"stage-{cut}-{copy}"
            flags = ("--layers", cut)
            nodes.append(grid.add(name, serve=MODEL, join=gateway, env=one_thread, options=flags, **options))
    for node in nodes:
        wait_until(f"{node.name} is ready", node.serves, 60)
    wait_for_stages(gateway, len(nodes))
    return nodes


def wait_for_stages(gateway, count, timeout_s=40):
    """Until the gateway knows exactly so many stages."""

    def known():
        peers = gateway.peers()
        rows = peers if isinstance(peers, list) else peers["data"]
        return sum(1 for row in rows for model in row["models"] if model["layers"]) == count

    wait_until(f"{gateway.name} knows {count} stages", known, timeout_s)


def ask(gateway, subject, seed=1, on_chunk=None, tokens=TOKENS, **changes):
    request = body(subject, seed) | {"max_tokens": tokens} | changes
    return client.stream(gateway.url, "/v1/chat/completions", request, on_chunk)


def greedy(gateway, subject, on_chunk=None, tokens=TOKENS):
    return ask(gateway, subject, on_chunk=on_chunk, tokens=tokens, temperature=0)


def busy(nodes):
    """The stages that have a session at this moment."""
    return [node for node in nodes if any(model["slots_busy"] for model in node.status()["models"])]


@dataclass
class Fault:
    """One fault in mid-answer and what the client saw of it."""

    stage: str
    identical: bool
    complete: bool
    tokens: int
    stall_s: float
    error: str | None


def fault_round(gateway, nodes, subject, number, rng=random, tokens=TOKENS):
    """Asks undisturbed, asks again and sends the signal to a stage of the session in mid-answer. The victim stays down."""
    undisturbed = greedy(gateway, subject, tokens=tokens)
    assert undisturbed.complete, f"the undisturbed answer failed: {undisturbed.error or undisturbed.status}"
    after = rng.randrange(5, max(6, len(undisturbed.chunks) * 3 // 4))
    hit = {}

    def strike(answer):
        if not hit and len(answer.chunks) >= after:
            victim = rng.choice(busy(nodes))
            victim.signal(number)
            hit.update(node=victim, at=time.perf_counter())

    answer = greedy(gateway, subject, strike, tokens)
    assert hit, "the answer was over before the fault"
    return hit["node"], Fault(
        stage=hit["node"].name,
        identical=answer.text == undisturbed.text,
        complete=answer.complete,
        tokens=(answer.usage or {}).get("completion_tokens", 0),
        stall_s=answer.longest_gap_s(hit["at"]),
        error=str(answer.error) if answer.error else None,
    )


def revive(gateway, node, stages):
    """Brings a stage back and waits until the gateway knows all of them."""
    if node.process.poll() is None:
        node.signal(signal.SIGKILL)
        node.process.wait(timeout=10)
    node.restart()
    wait_until(f"{node.name} is ready", node.serves, 60)
    wait_for_stages(gateway, stages)
