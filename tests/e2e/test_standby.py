"""Stages far from each other: rows are sent ahead to the node that would come in, and it begins with them where a stage is
killed; a stage that leaves hands its cache over all the same."""

import contextlib
import signal

import pytest

import pipelines
import wan
from grid import MODEL, wait_until

DELAY_MS = 25
FACTS = "The lighthouse stands on a rock. The keeper counts the ships that pass. At night the lamp turns. "
PROMPT = [{"role": "user", "content": f"{FACTS * 8} Go on with the story."}]
TOKENS = 60
USED = "opengrid_node_ahead_rows_used_total"
SENT = "opengrid_node_ahead_bytes_total"
HANDOVERS = "opengrid_node_handovers_total"

reason = wan.why_not()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"no laboratory here: {reason}")


class Chain:
    """A gateway, a first stage, and two nodes with the same last layers, each on a host of its own."""

    def __init__(self, grid, kb_per_s):
        self.grid, self.nodes = grid, []
        self.gateway = grid.add_at(0, "gateway")
        env = {"OPENGRID_SERVE_THREADS": "1", "OPENGRID_SERVE_SLOTS": "2", "OPENGRID_LIMITS_STANDBY_KB_PER_S": str(kb_per_s)}
        for host, layers in ((1, "0..15"), (2, "15..30"), (3, "15..30")):
            options = ("--layers", layers)
            node = grid.add_at(host, f"stage-{host}", serve=MODEL, join=self.gateway, env=env, options=options)
            with grid.at(host):
                wait_until(f"{node.name} is ready", node.serves, 60)
            self.nodes.append(node)
        with grid.at(0):
            pipelines.wait_for_stages(self.gateway, len(self.nodes))

    def ask(self, on_chunk=None, tokens=TOKENS):
        with self.grid.at(0):
            return pipelines.ask(self.gateway, "", on_chunk=on_chunk, tokens=tokens, temperature=0, messages=PROMPT)

    def metric(self, node, name):
        with self.grid.at(node.host):
            return node.metrics()[name]

    def ask_and_signal_the_last_stage(self, number, tokens=TOKENS):
        """After some tokens: rows of the answer went ahead, too. The answer, and the other node."""
        hit = []

        def strike(answered):
            if not hit and answered.usage is None and len(answered.chunks) >= 8:
                peer_id = self.gateway.status()["pipelines"][0]["stages"][1]["peer_id"]
                hit.append(self.grid.by_peer_id(peer_id))
                hit[0].signal(number)

        answered = self.ask(strike, tokens)
        assert hit and answered.complete, answered.error
        return answered, next(node for node in self.nodes[1:] if node is not hit[0])


@contextlib.contextmanager
def chain(kb_per_s):
    with wan.Wan(hosts=4, delay_ms=DELAY_MS) as grid:
        yield Chain(grid, kb_per_s)


@pytest.mark.parametrize("kb_per_s", [1024, 0])
def test_a_stage_that_comes_in_has_the_rows_already(kb_per_s):
    with chain(kb_per_s) as stages:
        undisturbed = stages.ask()
        assert undisturbed.complete, undisturbed.error
        answered, spare = stages.ask_and_signal_the_last_stage(signal.SIGKILL)
        assert answered.text == undisturbed.text
        used, prompt = stages.metric(spare, USED), answered.usage["prompt_tokens"]
        if kb_per_s == 0:
            assert used == 0 and stages.metric(stages.nodes[0], SENT) == 0
        else:
            assert prompt <= used < prompt + TOKENS, f"{used} rows of a prompt of {prompt}"
            assert stages.metric(stages.nodes[0], SENT) > 0


def test_a_stage_that_leaves_hands_over_though_rows_went_ahead():
    with chain(1024) as stages:
        # So many that it cannot be through before the cache has moved.
        undisturbed = stages.ask(tokens=4 * TOKENS)
        assert undisturbed.complete, undisturbed.error
        answered, spare = stages.ask_and_signal_the_last_stage(signal.SIGTERM, 4 * TOKENS)
        assert answered.text == undisturbed.text
        assert stages.metric(stages.nodes[0], SENT) > 0, "rows went ahead"
        assert (stages.metric(spare, HANDOVERS), stages.metric(spare, USED)) == (1, 0)
