"""Stages on this machine against the whole model on the same cores: one stream, and eight at once."""

import threading
import time

import pipelines
from failover import SUBJECTS
from figures import share
from grid import MODEL, Grid, wait_until

SPLITS = {2: ("0..15", "15..30"), 3: pipelines.CUTS}
STREAMS = 8
TOKENS = 160


def together(gateway, streams, number):
    """Tokens per second of so many answers at once."""
    answers = {}

    def one(at):
        subject = SUBJECTS[(number + at) % len(SUBJECTS)]
        answers[at] = pipelines.ask(gateway, subject, seed=100 * number + at, tokens=TOKENS)

    threads = [threading.Thread(target=one, args=(at,)) for at in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    for answer in answers.values():
        if not answer.complete:
            raise SystemExit(f"an answer failed: {answer.status} {answer.error}")
    return sum(answer.usage["completion_tokens"] for answer in answers.values()) / elapsed


def alone(gateway, number):
    """Tokens per second of one answer after its first token."""
    answer = pipelines.ask(gateway, SUBJECTS[number % len(SUBJECTS)], seed=number, tokens=TOKENS)
    if not answer.complete:
        raise SystemExit(f"an answer failed: {answer.status} {answer.error}")
    return answer.decode_tokens_per_s


def run(options, say):
    # As many threads everywhere as the whole model gets; slots for all streams.
    env = {"OPENGRID_SERVE_THREADS": "2", "OPENGRID_SERVE_SLOTS": str(STREAMS), "OPENGRID_SERVE_CONTEXT_TOKENS": "1024"}
    with Grid(models_dir=options.store) as whole_grid, Grid(models_dir=options.store) as two, Grid(models_dir=options.store) as three:
        whole = whole_grid.add("gateway")
        worker = whole_grid.add("worker", serve=MODEL, join=whole, env=env)
        wait_until("the whole model is ready", worker.serves, 60)
        whole_grid.wait_for_workers(1)
        chains = {}
        for grid, (count, cuts) in zip((two, three), SPLITS.items()):
            chains[count] = grid.add("gateway")
            pipelines.add_stages(grid, chains[count], cuts, env=env)
        samples = {name: [] for name in ("whole", 2, 3, "whole-8", "3-8")}
        for number in range(-1, options.rounds):
            row = {"whole": alone(whole, number + 1), 2: alone(chains[2], number + 1), 3: alone(chains[3], number + 1),
                   "whole-8": together(whole, STREAMS, number + 1), "3-8": together(chains[3], STREAMS, number + 1)}
            say(", ".join(f"{name}: {value:.0f}" for name, value in row.items()) + " tok/s")
            if number >= 0:  # the first round warms up
                for name, value in row.items():
                    samples[name].append(value)
    yield share("2 stages, 1 stream, against the whole model", samples[2], samples["whole"], "tok/s", at_least=0.95)
    yield share("3 stages, 1 stream, against the whole model", samples[3], samples["whole"], "tok/s", at_least=0.95)
    yield share("3 stages, 8 streams, against the whole model", samples["3-8"], samples["whole-8"], "tok/s", at_least=0.9)
