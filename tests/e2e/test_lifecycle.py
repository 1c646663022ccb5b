"""Starting, stopping and refusing to start."""

import json
import signal
import threading
import time

import pytest

import client
import failover
from grid import MODEL, Grid, alive, base_env, children_of, run


@pytest.fixture
def grid():
    with Grid() as grid:
        gateway = grid.add("gateway")
        grid.add("worker", serve=MODEL, join=gateway)
        yield grid.wait_for_workers(1)


def asked_in_background(node, subject):
    """Starts an answer; returns the thread and the list that gets it, once ten pieces are there."""
    got, under_way = [], threading.Event()

    def look(answer):
        if len(answer.chunks) == 10:
            under_way.set()

    thread = threading.Thread(target=lambda: got.append(failover.ask(node, subject, 11, look)), daemon=True)
    thread.start()
    assert under_way.wait(timeout=20)
    return thread, got


@pytest.mark.parametrize("which", ["gateway", "worker"])
def test_sigterm_drains_and_exits_0(grid, which):
    """An answer that runs is finished, by a draining worker and through a draining gateway alike."""
    gateway = grid.nodes[0]
    undisturbed = failover.ask(gateway, "a slow goodbye", 11)
    thread, got = asked_in_background(gateway, "a slow goodbye")
    node = gateway if which == "gateway" else grid.nodes[1]
    family = children_of(node.pid)
    assert node.stop(timeout_s=30) == 0, node.log()
    thread.join(timeout=30)
    assert got and got[0].complete, got
    assert got[0].text == undisturbed.text
    assert not any(alive(pid) for pid in family), "no child process is left"
    assert not (node.home / "runtime.json").exists()


def test_ctrl_c_is_the_same(grid):
    worker = grid.nodes[1]
    worker.signal(signal.SIGINT)
    assert worker.process.wait(timeout=15) == 0, worker.log()


def test_down_stops_a_node(grid):
    worker = grid.nodes[1]
    down = run("down", "--home", str(worker.home), env=worker.env)
    assert down.returncode == 0, down.stderr
    assert worker.process.wait(timeout=5) == 0


def test_no_child_survives_kill_9(grid):
    worker = grid.nodes[1]
    family = children_of(worker.pid)
    assert family, "a serving node has an engine process"
    worker.kill()
    deadline = time.monotonic() + 3
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in family)


def test_a_second_node_on_the_same_home_names_the_first(grid):
    gateway = grid.nodes[0]
    second = run("up", "--home", str(gateway.home), "--listen", "127.0.0.1:0", "--p2p-port", "0", "--serve", "none",
                 env=gateway.env, timeout_s=20)
    assert second.returncode != 0
    assert str(gateway.pid) in second.stderr, second.stderr
    assert client.request(gateway.url, "GET", "/health")[0] == 200


@pytest.mark.parametrize("taken", ["api", "p2p"])
def test_a_taken_port_is_named(grid, tmp_path, taken):
    gateway = grid.nodes[0]
    api = gateway.api_port if taken == "api" else 0
    p2p = gateway.p2p_port if taken == "p2p" else 0
    refused = run("up", "--home", str(tmp_path), "--listen", f"127.0.0.1:{api}", "--p2p-port", str(p2p), "--serve", "none",
                  env=gateway.env, timeout_s=20)
    assert refused.returncode != 0
    assert str(api or p2p) in refused.stderr, refused.stderr
    assert "panicked" not in refused.stderr


def test_a_stale_lock_of_a_killed_node_does_not_hinder(grid):
    gateway = grid.nodes[0]
    gateway.kill()
    gateway.restart()
    grid.wait_for_workers(1, timeout_s=20)


def test_invite_alone_on_the_first_line_and_status_fields(grid):
    gateway = grid.nodes[0]
    shown = run("invite", "--home", str(gateway.home), env=gateway.env)
    assert shown.returncode == 0 and shown.stdout.splitlines()[0].startswith("grid1")
    status = json.loads(run("status", "--json", "--home", str(gateway.home), env=gateway.env).stdout)
    assert {"peer_id", "version", "uptime_seconds", "role", "models", "peers"} <= status.keys()
    assert status["peer_id"] == gateway.peer_id


def test_run_answers_in_the_terminal(grid):
    gateway = grid.nodes[0]
    question = "What is the capital of France? Answer in one sentence."
    said = run("run", MODEL, question, "--temperature", "0", "--home", str(gateway.home), env=gateway.env)
    assert said.returncode == 0, said.stderr
    assert "Paris" in said.stdout


def test_without_a_node_commands_say_how_to_start_one(tmp_path):
    told = run("status", "--home", str(tmp_path), env=base_env(tmp_path))
    assert told.returncode != 0
    assert "opengrid up" in told.stderr, told.stderr
