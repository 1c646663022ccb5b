"""Nodes come and go: who dies leaves every list within 10 s, who joins gets work within 5 s."""

import signal
import time

import pytest

import client
from grid import MODEL, Grid, wait_until

LEAVE_S = 10
JOIN_S = 5


@pytest.fixture
def grid():
    with Grid() as grid:
        gateway = grid.add("gateway")
        for name in ("worker-1", "worker-2"):
            grid.add(name, serve=MODEL, join=gateway)
        grid.wait_for_workers(2)
        yield grid


def wait_gone(witnesses, peer_id, since):
    left = since + LEAVE_S - time.monotonic()
    wait_until("the dead node leaves every list", lambda: all(
        peer_id not in node.connected() and node.workers() == 1 and not listed_as_worker(node, peer_id)
        for node in witnesses), left)


def listed_as_worker(node, peer_id):
    return any(row["peer_id"] == peer_id and row["models"] for row in node.peers())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_silent_node_leaves_every_list(grid, number):
    gateway, victim, other = grid.nodes
    wait_until("everybody knows both workers", lambda: gateway.workers() == other.workers() == 2, 20)
    assert victim.peer_id in gateway.connected()
    victim.signal(number)
    since = time.monotonic()
    try:
        wait_gone([gateway, other], victim.peer_id, since)
        answer = chat(gateway)
        assert answer.complete and answer.headers["x-opengrid-worker"] == other.peer_id
    finally:
        if number == signal.SIGSTOP:
            victim.signal(signal.SIGCONT)
    if number == signal.SIGSTOP:
        grid.wait_for_workers(2, timeout_s=20)


def test_a_joining_node_gets_work(grid):
    gateway = grid.nodes[0]
    joining = grid.node("worker-3", serve=MODEL, join=gateway)
    started = time.monotonic()
    joining.start()
    wait_until("the new node answers", lambda: chat(gateway, str(time.monotonic())).headers["x-opengrid-worker"]
               == joining.peer_id, started + JOIN_S - time.monotonic(), every_s=0.01)


def test_a_returning_node_is_found_without_an_invite(grid):
    """The peer cache: worker-2 restarts without --join while the gateway lives."""
    gateway, _, worker = grid.nodes
    worker.stop()
    grid.wait_for_workers(1, timeout_s=LEAVE_S)
    joined = worker.options.index("--join")
    del worker.options[joined : joined + 2]
    worker.restart()
    grid.wait_for_workers(2, timeout_s=20)
    assert worker.peer_id in gateway.connected()


def test_a_killed_node_that_comes_back_gets_work(grid):
    """kill -9, and the same home again before the others have missed it; only the peer cache knows the way."""
    gateway, _, worker = grid.nodes
    wait_until("both workers answered", lambda: chat(gateway, str(time.monotonic())).headers["x-opengrid-worker"]
               == worker.peer_id, 20, every_s=0.01)
    worker.kill()
    time.sleep(1.5)
    joined = worker.options.index("--join")
    del worker.options[joined : joined + 2]
    started = time.monotonic()
    worker.start(wait=False)
    wait_until("it answers again", lambda: chat(gateway, str(time.monotonic())).headers["x-opengrid-worker"]
               == worker.peer_id, started + JOIN_S - time.monotonic(), every_s=0.01)


def chat(node, salt=""):
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{salt} Say hello."}], "max_tokens": 2}
    return client.stream(node.url, "/v1/chat/completions", body)
