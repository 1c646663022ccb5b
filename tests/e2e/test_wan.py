"""A grid over a wide area network: delays are real, and a link that swallows everything is found by silence."""

import pytest

import failover
import wan
from grid import MODEL, wait_until

DELAY_MS = 25
ROUND_TRIP_S = 2 * DELAY_MS / 1000
CUT_AFTER_CHUNKS = 40
STALL_MAX_S = 4

reason = wan.why_not()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"no laboratory here: {reason}")


@pytest.fixture(scope="module")
def grid():
    """The gateway at host 0, a worker at each of two others."""
    with wan.Wan(hosts=3, delay_ms=DELAY_MS) as grid:
        gateway = grid.add_at(0, "gateway")
        for host in (1, 2):
            grid.add_at(host, f"worker-{host}", serve=MODEL, join=gateway)
        with grid.at(0):
            yield grid.wait_for_workers(2)


def test_an_answer_takes_the_way_there_and_back(grid):
    gateway = grid.nodes[0]
    failover.ask(gateway, "a warm-up", 1)
    answer = failover.ask(gateway, "a lighthouse keeper", 1)
    assert answer.complete, answer.error
    # Not faster than the network, and no round trip for each token.
    assert answer.first_token_s >= ROUND_TRIP_S
    assert grid.stats()["late_p99_us"] < 1000 * DELAY_MS
    tokens = answer.usage["completion_tokens"]
    assert answer.ended - answer.started - answer.first_token_s < tokens * ROUND_TRIP_S


def test_a_link_that_swallows_everything_is_a_pause_and_the_same_text(grid):
    gateway, cut = grid.nodes[0], []
    undisturbed = failover.ask(gateway, "a frozen lake", 5)

    def cut_off(answer):
        if not cut and len(answer.chunks) >= CUT_AFTER_CHUNKS:
            cut.append(grid.by_peer_id(answer.headers["x-opengrid-worker"]))
            grid.cut(cut[0].host)

    answer = failover.ask(gateway, "a frozen lake", 5, cut_off)
    assert cut and answer.complete, answer.error
    assert answer.text == undisturbed.text
    assert answer.longest_gap_s(answer.chunks[CUT_AFTER_CHUNKS - 1].at) <= STALL_MAX_S
    lost = sum(link["cut"] for link in grid.stats()["links"])
    assert lost > 0, "the worker went on to speak into the cut link"
    grid.heal()
    wait_until("the cut worker is known again", lambda: gateway.workers() == 2, 60)
