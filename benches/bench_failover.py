"""Faults in mid-answer: kill -9 of a worker that serves the whole model, and of stages, which also hang."""

import random
import signal

import failover
import pipelines
from figures import percentile, plain
from grid import MODEL, Grid

KILLS = 20
STAGE_KILLS = 50
STAGE_HANGS = 20


def run(options, say):
    yield from whole(options, say)
    yield from stages(options, say)


def whole(options, say):
    with Grid(models_dir=options.store) as grid:
        gateway = grid.add("gateway")
        for name in ("worker-1", "worker-2"):
            grid.add(name, serve=MODEL, join=gateway)
        grid.wait_for_workers(2)
        outcomes = []
        for outcome in failover.rounds(grid, options.count or KILLS, seed=options.seed):
            outcomes.append(outcome)
            say(f"kill {len(outcomes)} after {outcome.killed_after} tokens: stall {outcome.stall_s:.2f} s, identical: {outcome.identical}")
    stalls = [outcome.stall_s for outcome in outcomes]
    kills = len(outcomes)
    mid = sum(outcome.mid_answer and outcome.other_worker_went_on for outcome in outcomes)
    yield plain("kills mid-answer, another worker went on", mid, "kills", at_least=kills)
    yield plain("complete answers", sum(outcome.complete for outcome in outcomes), "answers", at_least=kills)
    yield plain("identical to the undisturbed answer", sum(outcome.identical for outcome in outcomes), "answers", at_least=kills)
    yield plain("stall p50", percentile(stalls, 50), "s")
    yield plain("stall p95", percentile(stalls, 95), "s", at_most=2)
    yield plain("stall, worst", max(stalls), "s", at_most=4)


def stages(options, say):
    """Three stages, each twice; greedy text, 200 tokens. SIGSTOP leaves connections open and says nothing."""
    rng = random.Random(options.seed)
    with Grid(models_dir=options.store) as grid:
        gateway = grid.add("gateway")
        nodes = pipelines.add_stages(grid, gateway, copies=2)
        for name, number, count, stall_max in (
            ("killed", signal.SIGKILL, options.count or STAGE_KILLS, 2),
            ("hanging", signal.SIGSTOP, options.count or STAGE_HANGS, 4),
        ):
            faults = []
            for at in range(count):
                subject = failover.SUBJECTS[at % len(failover.SUBJECTS)]
                victim, fault = pipelines.fault_round(gateway, nodes, subject, number, rng)
                faults.append(fault)
                say(f"{name} {at + 1}: {fault.stage}, stall {fault.stall_s:.2f} s, identical: {fault.identical}")
                pipelines.revive(gateway, victim, len(nodes))
            stalls = [fault.stall_s for fault in faults]
            yield plain(f"{name} stage: complete answers", sum(f.complete for f in faults), "answers", at_least=count)
            yield plain(f"{name} stage: identical greedy text", sum(f.identical for f in faults), "answers", at_least=count)
            yield plain(f"{name} stage: stall p50", percentile(stalls, 50), "s")
            yield plain(f"{name} stage: stall p95", percentile(stalls, 95), "s", at_most=stall_max)
            yield plain(f"{name} stage: stall, worst", max(stalls), "s")
