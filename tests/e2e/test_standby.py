"""Stages far from each other: rows are sent ahead to the node that would come in, and it begins with them."""

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

reason = wan.why_not()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"no laboratory here: {reason}")


@pytest.mark.parametrize("kb_per_s", [1024, 0])
def test_a_stage_that_comes_in_has_the_rows_already(kb_per_s):
    env = {"OPENGRID_SERVE_THREADS": "1", "OPENGRID_SERVE_SLOTS": "2", "OPENGRID_LIMITS_STANDBY_KB_PER_S": str(kb_per_s)}
    with wan.Wan(hosts=4, delay_ms=DELAY_MS) as grid:
        gateway = grid.add_at(0, "gateway")
        nodes = []
        for host, layers in ((1, "0..15"), (2, "15..30"), (3, "15..30")):
            node = grid.add_at(host, f"stage-{host}", serve=MODEL, join=gateway, env=env, options=("--layers", layers))
            with grid.at(host):
                wait_until(f"{node.name} is ready", node.serves, 60)
            nodes.append(node)

        def ask(on_chunk=None):
            with grid.at(0):
                return pipelines.ask(gateway, "", on_chunk=on_chunk, tokens=TOKENS, temperature=0, messages=PROMPT)

        def metric(node, name):
            with grid.at(node.host):
                return node.metrics()[name]

        with grid.at(0):
            pipelines.wait_for_stages(gateway, len(nodes))
        undisturbed = ask()
        assert undisturbed.complete, undisturbed.error
        killed = []

        def kill(answered):
            # After some tokens: rows of the answer went ahead, too.
            if not killed and answered.usage is None and len(answered.chunks) >= 8:
                peer_id = gateway.status()["pipelines"][0]["stages"][1]["peer_id"]
                killed.append(grid.by_peer_id(peer_id))
                killed[0].signal(signal.SIGKILL)

        answered = ask(kill)
        assert killed and answered.complete, answered.error
        assert answered.text == undisturbed.text
        spare = next(node for node in nodes[1:] if node is not killed[0])
        used, prompt = metric(spare, USED), answered.usage["prompt_tokens"]
        if kb_per_s == 0:
            assert used == 0 and metric(nodes[0], SENT) == 0
        else:
            assert prompt <= used < prompt + TOKENS, f"{used} rows of a prompt of {prompt}"
            assert metric(nodes[0], SENT) > 0
