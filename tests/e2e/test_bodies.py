"""10,000 mutated bodies at every POST endpoint under /v1: no 500, no hang, no leak."""

import http.client
import json
import os
import pathlib
import random
import sys
import threading
import time
from collections import Counter

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "scenarios"))

import mutation  # noqa: E402
from grid import MODEL, Grid, children_of, rss_bytes, wait_until  # noqa: E402
from oracle import recorded  # noqa: E402
from table import SCENARIOS  # noqa: E402

REQUESTS = int(os.environ.get("OPENGRID_TEST_BODIES", "10000"))
SEED = int(os.environ.get("OPENGRID_TEST_SEED", "1"))
THREADS = 8
ANSWERED_S_MAX = 10
# Of an endless answer, that much is read before the client hangs up.
READ_BYTES_MAX = 64 * 1024
GROWTH_BYTES_MAX = 8 * 1024 * 1024
# 503 is for what this grid cannot do now; it must say when to come back.
STATUSES = {200, 400, 404, 413, 415, 422, 429, 503}
ANSWERED = {name for name, answer in recorded().items() if answer["status"] == 200}
SEEDS = [
    (row.path, row.body) for row in SCENARIOS
    if row.method == "POST" and row.name in ANSWERED and not row.name.startswith("error")
]


@pytest.fixture(scope="module")
def node():
    fake = {"OPENGRID_SERVE_ENGINE": "fake", "OPENGRID_SERVE_FAKE_TOKENS_PER_S": "100000"}
    with Grid(env=fake) as grid:
        node = grid.add("node", serve=MODEL)
        grid.wait_for_workers(1)
        yield node


class Sender:
    """One thread's share of the requests, on a connection that stays open where the gateway lets it."""

    def __init__(self, node, seed, count):
        self.node, self.rng, self.count = node, random.Random(seed), count
        self.statuses, self.wrong, self.slowest_s = Counter(), [], 0.0
        self.connection = None

    def run(self):
        for _ in range(self.count):
            path, body = self.rng.choice(SEEDS)
            payload = mutation.mutated(self.rng, body)
            try:
                self.send(path, payload)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.wrong.append((repr(error), path, payload[:500]))
                self.connection = None

    def send(self, path, payload):
        started = time.monotonic()
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.node.api_port, timeout=ANSWERED_S_MAX)
        self.connection.request("POST", path, payload, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        body = answer.read(READ_BYTES_MAX)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        if not answer.isclosed():
            self.connection.close()
            self.connection = None
        self.statuses[answer.status] += 1
        if reason := what_is_wrong(answer, body):
            self.wrong.append((reason, path, payload[:500]))


def what_is_wrong(answer, body):
    if answer.status not in STATUSES:
        return f"status {answer.status}: {body[:300]}"
    if answer.status == 503 and not answer.getheader("retry-after"):
        return f"503 without retry-after: {body[:300]}"
    if answer.status != 200 and not json.loads(body)["error"]["message"]:
        return f"{answer.status} without a message"
    return None


def send_all(node, seed, count):
    senders = [Sender(node, f"{seed} {number}", count // THREADS) for number in range(THREADS)]
    threads = [threading.Thread(target=sender.run) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sender in senders:
        if sender.connection:
            sender.connection.close()
    return senders


def open_files(node):
    return len(os.listdir(f"/proc/{node.pid}/fd"))


def memory(node):
    return sum(map(rss_bytes, [node.pid, *children_of(node.pid)]))


def running(node):
    """Requests at the gateway and sessions at the worker; both are the same process here."""
    found = node.metrics()
    return found["opengrid_num_requests_running"] + found["opengrid_num_requests_waiting"] + node.status()["sessions_running"]


def test_no_body_breaks_the_gateway(node):
    first = send_all(node, f"{SEED} first", REQUESTS // 2)
    wait_until("all requests have ended", lambda: running(node) == 0, 15)
    files, bytes_before = open_files(node), memory(node)
    second = send_all(node, f"{SEED} second", REQUESTS // 2)
    wait_until("all requests have ended", lambda: running(node) == 0, 15)

    senders = first + second
    statuses = sum((sender.statuses for sender in senders), Counter())
    wrong = [entry for sender in senders for entry in sender.wrong]
    print(f"statuses {dict(statuses)}, slowest {max(sender.slowest_s for sender in senders):.2f} s")
    assert not wrong, f"{len(wrong)} wrong answers, the first: {wrong[:3]}"
    assert statuses.total() == REQUESTS // THREADS // 2 * THREADS * 2
    # Bodies that are still good are answered, bad ones refused: both sides of the parser have been reached.
    assert statuses[200] > REQUESTS // 10 and statuses[400] > REQUESTS // 4, statuses
    assert max(sender.slowest_s for sender in senders) < ANSWERED_S_MAX
    wait_until("connections are closed", lambda: open_files(node) <= files + 2, 15)
    growth = memory(node) - bytes_before
    print(f"grew by {growth / 1e6:.1f} MB from {bytes_before / 1e6:.1f} MB in the second half")
    assert growth < GROWTH_BYTES_MAX
    assert node.process.poll() is None
