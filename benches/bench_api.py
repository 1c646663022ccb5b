"""What the gateway itself costs, in front of fake engines that take no time: an answer of one token is all overhead.

Everything shares this machine's cores: gateway, workers and the load (`crates/gateway/examples/load.rs`).
"""

import json
import subprocess
import time

from figures import plain
from grid import MODEL, ROOT, Grid, children_of, rss_bytes

LATENCY_REQUESTS = 3_000
RATE_S = 10
RATE_CONNECTIONS = 16
IDLE_STREAMS = 10_000
# Fewer than the 512 sessions that one channel carries.
STREAMS_PER_WORKER = 500
# Over three keep-alive comments of 10 s, so that every stream has been written to.
IDLE_WATCHED_S = 35
INSTANT = {"OPENGRID_SERVE_ENGINE": "fake", "OPENGRID_SERVE_FAKE_TOKENS_PER_S": "1000000"}
SILENT = {
    "OPENGRID_SERVE_ENGINE": "fake", "OPENGRID_SERVE_FAKE_TOKENS_PER_S": "0", "OPENGRID_SERVE_SLOTS": "256",
    "OPENGRID_SERVE_QUEUE": "1024",
}


def load_program():
    build = ["cargo", "build", "--release", "--quiet", "-p", "opengrid-gateway", "--example", "load"]
    subprocess.run(build, cwd=ROOT, check=True)
    return str(ROOT / "target" / "release" / "examples" / "load")


def request(**fields):
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return json.dumps(body | fields)


class Load:
    def __init__(self, node):
        self.program, self.address = load_program(), f"127.0.0.1:{node.api_port}"

    def measure(self, mode, *numbers, **fields):
        command = [self.program, mode, self.address, *map(str, numbers)]
        done = subprocess.run(command, input=request(**fields), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"load {mode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def hold(self, streams):
        """A process that keeps the streams open; its one line says when they are."""
        command = [self.program, "hold", self.address, str(streams)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holder.stdin.write(request(stream=True, max_tokens=64))
        holder.stdin.close()
        return holder


def measure_cost(name, load, say):
    load.measure("latency", 300)  # warm up: vocabulary, template, channel
    say(f"{name}: latency")
    one = load.measure("latency", LATENCY_REQUESTS)
    yield plain(f"{name}: added latency p50", one["p50_us"] / 1000, "ms", at_most=1)
    yield plain(f"{name}: added latency p99", one["p99_us"] / 1000, "ms")
    say(f"{name}: rate")
    rate = load.measure("rate", RATE_S, RATE_CONNECTIONS)
    yield plain(f"{name}: answers, {RATE_CONNECTIONS} connections", rate["per_s"], "requests/s", at_least=2_000)
    rate = load.measure("rate", RATE_S, RATE_CONNECTIONS, max_tokens=16)
    yield plain(f"{name}: answers of 16 tokens, {RATE_CONNECTIONS} connections", rate["per_s"], "requests/s")


def measure_idle(gateway, streams, say):
    family = lambda: sum(map(rss_bytes, [gateway.pid, *children_of(gateway.pid)]))  # noqa: E731
    load, at_rest = Load(gateway), family()
    say(f"{streams} streams that wait for their first token")
    holder = load.hold(streams)
    try:
        opened, largest = json.loads(holder.stdout.readline() or "{}"), 0
        watched_until = time.monotonic() + IDLE_WATCHED_S
        while time.monotonic() < watched_until:
            largest = max(largest, family())
            time.sleep(0.5)
        found = gateway.metrics()
        waiting = found["opengrid_num_requests_running"] + found["opengrid_num_requests_waiting"]
        if holder.poll() is not None:
            raise SystemExit("load hold: a stream ended")
    finally:
        holder.kill()
        holder.wait()
    say(f"opened in {opened.get('seconds')} s")
    yield plain("idle streams held", min(opened.get("count", 0), waiting), "streams", at_least=streams)
    yield plain("gateway memory at rest", at_rest / 1e6, "MB")
    yield plain(f"gateway memory with {streams} idle streams, largest", largest / 1e6, "MB", at_most=500)


def run(options, say):
    with Grid(env=INSTANT, models_dir=options.store) as grid:
        node = grid.add("node", serve=MODEL)
        grid.wait_for_workers(1)
        yield from measure_cost("one node", Load(node), say)
    with Grid(env=INSTANT, models_dir=options.store) as grid:
        gateway = grid.add("gateway")
        grid.add("worker", serve=MODEL, join=gateway)
        grid.wait_for_workers(1)
        yield from measure_cost("gateway and worker", Load(gateway), say)
    streams = options.count or IDLE_STREAMS
    with Grid(env=SILENT, models_dir=options.store) as grid:
        gateway = grid.add("gateway")
        workers = -(-streams // STREAMS_PER_WORKER)
        for number in range(workers):
            grid.add(f"worker-{number}", serve=MODEL, join=gateway)
        grid.wait_for_workers(workers)
        yield from measure_idle(gateway, streams, say)
