"""Fixtures of the client tests."""

import pytest

from grid import MODEL, Grid


@pytest.fixture(scope="session")
def slow_node():
    """A node whose fake engine has one slot and no queue, and takes 20 ms a token: easily busy, slow to end."""
    fake = {"OPENGRID_SERVE_ENGINE": "fake", "OPENGRID_SERVE_SLOTS": "1", "OPENGRID_SERVE_QUEUE": "0"}
    with Grid(env=fake) as grid:
        node = grid.add("slow", serve=MODEL)
        grid.wait_for_workers(1)
        yield node
