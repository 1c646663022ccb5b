"""kill -9 of the serving worker mid-answer: shared by the test (a few rounds) and the benchmark (twenty)."""

import random
import threading
import time
from dataclasses import dataclass

import client
from grid import MODEL

TOKENS = 200
SUBJECTS = ["a lighthouse keeper", "two foxes", "the last train", "a clockmaker", "a garden in the desert", "an old map"]


@dataclass
class Round:
    """One kill and what the client saw of it."""

    killed_after: int
    tokens: int
    complete: bool
    identical: bool
    mid_answer: bool
    other_worker_went_on: bool
    stall_s: float
    error: str | None


def body(subject, seed):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Tell me a long story about {subject}."}],
        "temperature": 0.8,
        "seed": seed,
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }


def ask(gateway, subject, seed, on_chunk=None):
    return client.stream(gateway.url, "/v1/chat/completions", body(subject, seed), on_chunk)


def kill_round(grid, gateway, subject, seed, rng):
    """Asks undisturbed, asks again and kills the worker that serves after a random number of tokens, then brings the
    dead worker back."""
    undisturbed = ask(gateway, subject, seed)
    assert undisturbed.complete, f"the undisturbed answer failed: {undisturbed.error or undisturbed.status}"
    kill_after = rng.randrange(5, TOKENS - 20)
    before = {node.peer_id: generated(node) for node in grid.nodes[1:]}
    killed = {}

    def kill(answer):
        if killed or len(answer.chunks) < kill_after:
            return
        victim = grid.by_peer_id(answer.headers["x-opengrid-worker"])
        victim.kill()
        killed.update(node=victim, at=time.perf_counter(), chunks=len(answer.chunks))

    answer = ask(gateway, subject, seed, kill)
    assert killed, f"the answer had only {len(answer.chunks)} pieces, the kill was due at {kill_after}"
    victim = killed["node"]
    went_on = any(generated(node) > before[node.peer_id] for node in grid.nodes[1:] if node is not victim)
    outcome = Round(
        killed_after=killed["chunks"],
        tokens=(answer.usage or {}).get("completion_tokens", 0),
        complete=answer.complete,
        identical=answer.text == undisturbed.text,
        mid_answer=victim.process.returncode == -9 and killed["chunks"] < len(answer.chunks),
        other_worker_went_on=went_on,
        stall_s=answer.longest_gap_s(killed["at"]),
        error=str(answer.error) if answer.error else None,
    )
    victim.restart()
    grid.wait_for_workers(len(grid.nodes) - 1, at=gateway)
    return outcome


def generated(node):
    return node.status()["tokens_generated"]


def rounds(grid, count, seed=1):
    """Yields `count` rounds on a grid whose first node is the gateway and whose others are workers."""
    rng = random.Random(seed)
    for number in range(count):
        yield kill_round(grid, grid.nodes[0], SUBJECTS[number % len(SUBJECTS)], 1000 + number, rng)


class Load:
    """`streams` endless answers at one node, to have other work in the engine's batches. Use with `with`."""

    def __init__(self, node, streams):
        self.node, self.streams, self.stop = node, streams, threading.Event()
        self.threads, self.tokens, self.errors = [], 0, []

    def __enter__(self):
        self.threads = [threading.Thread(target=self.run, args=(number,), daemon=True) for number in range(self.streams)]
        for thread in self.threads:
            thread.start()
        return self

    def run(self, number):
        class Ended(Exception):
            pass

        def look(answer):
            self.tokens += 1
            if self.stop.is_set():
                raise Ended

        turn = 0
        while not self.stop.is_set():
            turn += 1
            try:
                ask(self.node, f"number {number} in year {turn}", 77 * number + turn, look)
            except Ended:
                return
            except OSError as error:
                self.errors.append(error)
                time.sleep(0.1)

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(timeout=30)
