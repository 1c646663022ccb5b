"""What a node without a model costs while nothing happens: the whole process tree, connected to another node."""

import time

from figures import plain
from grid import Grid, children_of, cpu_s, rss_bytes

SECONDS = 60
SETTLE_S = 10


def family(node):
    return [node.pid, *children_of(node.pid)]


def run(options, say):
    with Grid(models_dir=options.store) as grid:
        node = grid.add("node")
        grid.add("other", join=node)
        seconds = options.count or SECONDS
        say(f"watching an idle node for {SETTLE_S} + {seconds} s")
        time.sleep(SETTLE_S)
        before, started, largest = sum(map(cpu_s, family(node))), time.monotonic(), 0
        while time.monotonic() < started + seconds:
            largest = max(largest, sum(map(rss_bytes, family(node))))
            time.sleep(1)
        used = sum(map(cpu_s, family(node))) - before
        elapsed = time.monotonic() - started
    yield plain("idle node without a model: resident memory, largest", largest / 1e6, "MB", at_most=60)
    yield plain(f"idle node without a model: share of a core over {seconds} s", 100 * used / elapsed, "%", at_most=1)
