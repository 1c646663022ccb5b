"""Fixtures of the client tests."""

import time

import pytest

import client
from grid import MODEL, Grid, run, wait_until

FAKE = {"OPENGRID_SERVE_ENGINE": "fake"}


@pytest.fixture(scope="session")
def slow_node():
    """A node whose fake engine has one slot and no queue, and takes 20 ms a token: easily busy, slow to end."""
    with Grid(env=FAKE | {"OPENGRID_SERVE_SLOTS": "1", "OPENGRID_SERVE_QUEUE": "0"}) as grid:
        node = grid.add("slow", serve=MODEL)
        grid.wait_for_workers(1)
        yield node


@pytest.fixture(scope="session")
def closed_node():
    """A node that asks for keys."""
    with Grid(env=FAKE | {"OPENGRID_API_REQUIRE_KEY": "true"}) as grid:
        node = grid.add("closed", serve=MODEL)
        grid.wait_for_workers(1)
        yield node


@pytest.fixture
def new_key(closed_node):
    """Makes a key of `closed_node`, by the command that people use."""

    def make(*options):
        done = run("keys", "create", *options, "--home", str(closed_node.home), env=closed_node.env)
        assert done.returncode == 0, done.stderr
        key = done.stdout.strip()
        headers = {"Authorization": f"Bearer {key}"}
        known = lambda: client.request(closed_node.url, "GET", "/v1/models", headers=headers)[0] in (200, 403)  # noqa: E731
        wait_until("the node knows the key", known, 5)
        return key

    return make


@pytest.fixture
def idle():
    """Waits until a node computes nothing any more: what hanging up must come to."""

    def wait(node):
        wait_until(f"{node.name} stops", lambda: node.status()["sessions_running"] == 0, 5)
        generated = node.status()["tokens_generated"]
        time.sleep(0.3)
        assert node.status()["tokens_generated"] == generated

    return wait
