"""200 concurrent streams through one gateway to fake engines: none lost, memory bounded."""

import threading
import time

import client
from figures import percentile, plain
from grid import MODEL, Grid, children_of, rss_bytes

STREAMS = 200
WORKERS = 2
TOKENS = 200
# What one stream may cost the gateway, on top of what it takes at rest.
BYTES_PER_STREAM_MAX = 512 * 1024


def ask(gateway, number, answers):
    body = {"model": MODEL, "prompt": f"stream {number}", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 1, "seed": number}
    try:
        answers[number] = client.stream(gateway.url, "/v1/completions", body, timeout_s=120)
    except OSError as error:
        answers[number] = error


def whole(answer):
    return isinstance(answer, client.Answer) and answer.complete and answer.usage["completion_tokens"] == TOKENS


def run(options, say):
    streams = options.count or STREAMS
    fake = {"OPENGRID_SERVE_ENGINE": "fake", "OPENGRID_SERVE_SLOTS": str(min(streams, 256))}
    with Grid(env=fake, models_dir=options.store) as grid:
        gateway = grid.add("gateway")
        for number in range(WORKERS):
            grid.add(f"worker-{number}", serve=MODEL, join=gateway)
        grid.wait_for_workers(WORKERS)
        family = lambda: [gateway.pid, *children_of(gateway.pid)]  # noqa: E731
        warm = {}
        ask(gateway, 0, warm)
        if not whole(warm[0]):
            raise SystemExit(f"a single stream failed: {warm[0]}")
        at_rest, largest, answers = sum(map(rss_bytes, family())), 0, {}
        say(f"{streams} streams of {TOKENS} tokens")
        threads = [threading.Thread(target=ask, args=(gateway, number, answers)) for number in range(streams)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            largest = max(largest, sum(map(rss_bytes, family())))
            time.sleep(0.1)
        elapsed = time.perf_counter() - started
    complete = [answer for answer in answers.values() if whole(answer)]
    for answer in answers.values():
        if not whole(answer):
            say(f"lost: {answer if isinstance(answer, OSError) else (answer.status, answer.error, answer.usage)}")
    yield plain("streams complete", len(complete), "streams", at_least=streams)
    if complete:
        first = percentile([answer.first_token_s * 1000 for answer in complete], 95)
        yield plain("time to first token p95", first, "ms")
        yield plain("total speed", streams * TOKENS / elapsed, "tok/s")
    yield plain("gateway memory at rest", at_rest / 1e6, "MB")
    yield plain("gateway memory, largest", largest / 1e6, "MB", at_most=round((at_rest + streams * BYTES_PER_STREAM_MAX) / 1e6, 1))
