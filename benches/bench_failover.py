"""kill -9 of the serving worker at a random token of 200, temperature 0.8, fixed seed."""

import failover
from figures import percentile, plain
from grid import MODEL, Grid

KILLS = 20


def run(options, say):
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
