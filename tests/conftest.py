"""Fixtures. One small grid is shared by all tests that leave it as it was; those that kill something start their own."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "e2e"))

from grid import EMBEDDING_MODEL, MODEL, Grid, shared_store  # noqa: E402


@pytest.fixture(scope="session")
def shared_grid():
    """A gateway without a model and two workers of the default model."""
    with Grid() as grid:
        gateway = grid.add("gateway")
        for name in ("worker-1", "worker-2"):
            grid.add(name, serve=MODEL, join=gateway)
        yield grid.wait_for_workers(2)


@pytest.fixture
def gateway(shared_grid):
    return shared_grid.nodes[0]


@pytest.fixture(scope="session")
def embedding_gateway():
    """A gateway without a model; a worker of the embedding model."""
    shared_store(EMBEDDING_MODEL)
    with Grid() as grid:
        gateway = grid.add("gateway")
        grid.add("worker", serve=EMBEDDING_MODEL, join=gateway)
        grid.wait_for_workers(1, model=EMBEDDING_MODEL)
        yield gateway


@pytest.fixture
def openai(gateway):
    import openai as package

    # The official client with its defaults, but for the address: no retries, so that an error is seen as it comes.
    return package.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=60)
