"""A second `./run` is up in under five seconds: from the command to an answer by a worker."""

import os
import re
import signal
import statistics
import subprocess
import time

import client
import grid
from figures import plain

READY = re.compile(rb"http://127\.0\.0\.1:(\d+)")
FIRST_S = 1200
NEXT_S = 60


def start_and_stop(options, say, label, timeout_s):
    """Seconds from `./run` to health and to the first answer; Ctrl-C ends it."""
    env = grid.base_env(options.store)
    started = time.monotonic()
    run = subprocess.Popen([str(grid.ROOT / "run"), "3"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           stdin=subprocess.DEVNULL, start_new_session=True)
    output = b""
    try:
        while not (found := READY.search(output)):
            line = run.stdout.readline()
            output += line
            if not line or time.monotonic() > started + timeout_s:
                raise SystemExit(f"./run did not print an address within {timeout_s} s:\n{output.decode(errors='replace')}")
        url = f"http://127.0.0.1:{found[1].decode()}"
        body = {"model": grid.MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}

        def answered():
            return client.request(url, "POST", "/v1/chat/completions", body, timeout_s=10)[0] == 200

        grid.wait_until("the grid answers", answered, timeout_s)
        took = time.monotonic() - started
        say(f"{label} start: an answer after {took:.2f} s")
        return took
    finally:
        os.killpg(run.pid, signal.SIGINT)
        try:
            run.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


def run(options, say):
    first = start_and_stop(options, say, "first", FIRST_S)
    later = [start_and_stop(options, say, f"start {number + 2}:", NEXT_S) for number in range(options.count or 3)]
    yield plain("./run 3, first start, to an answer", first, "s")
    yield plain("./run 3, next starts, to an answer, median", statistics.median(later), "s", at_most=5)
    yield plain("./run 3, next starts, to an answer, worst", max(later), "s", at_most=5)
