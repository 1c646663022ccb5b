"""The serving worker dies mid-answer and the client sees a pause, never an error, and the same text."""

import json
import math
import os
import signal

import openai as package
import pytest

import failover
from grid import MODEL, Grid, wait_until

ROUNDS = int(os.environ.get("OPENGRID_TEST_KILLS", "20"))


@pytest.fixture(scope="module")
def grid():
    with Grid() as grid:
        gateway = grid.add("gateway")
        for name in ("worker-1", "worker-2"):
            grid.add(name, serve=MODEL, join=gateway)
        yield grid.wait_for_workers(2)


def test_kill_9_of_the_serving_worker(grid):
    outcomes = list(failover.rounds(grid, ROUNDS))
    for outcome in outcomes:
        print(outcome)
        assert outcome.mid_answer and outcome.other_worker_went_on, outcome
        assert outcome.complete and outcome.tokens == failover.TOKENS, outcome
        assert outcome.identical, outcome
        assert outcome.stall_s <= 4, outcome
    stalls = sorted(outcome.stall_s for outcome in outcomes)
    assert stalls[math.ceil(0.95 * len(stalls)) - 1] <= 2 or ROUNDS < 20, stalls


def test_a_worker_that_hangs_is_replaced_too(grid):
    """SIGSTOP: the connection stays open and nothing comes any more."""
    gateway = grid.nodes[0]
    undisturbed = failover.ask(gateway, "a frozen lake", 5)
    stopped = []

    def stop(answer):
        if not stopped and len(answer.chunks) >= 40:
            stopped.append(grid.by_peer_id(answer.headers["x-opengrid-worker"]))
            stopped[0].signal(signal.SIGSTOP)

    try:
        answer = failover.ask(gateway, "a frozen lake", 5, stop)
    finally:
        for node in stopped:
            node.signal(signal.SIGCONT)
    assert stopped and answer.complete, answer.error
    assert answer.text == undisturbed.text
    assert answer.longest_gap_s(answer.chunks[39].at) <= 4
    grid.wait_for_workers(2)


def test_an_aborted_engine_child_is_an_ordinary_failover(grid):
    """kill -ABRT of the engine's process, as a failed GGML_ASSERT would: the node lives, the answer is complete."""
    gateway = grid.nodes[0]
    undisturbed = failover.ask(gateway, "a broken engine", 9)
    aborted = []

    def abort(answer):
        if not aborted and len(answer.chunks) >= 40:
            node = grid.by_peer_id(answer.headers["x-opengrid-worker"])
            (child,) = node.engine_children()
            os.kill(child, signal.SIGABRT)
            aborted.extend([node, child])

    answer = failover.ask(gateway, "a broken engine", 9, abort)
    assert aborted and answer.complete, answer.error
    assert answer.text == undisturbed.text
    node, child = aborted
    assert node.process.poll() is None, "the node survives its engine"
    wait_until("the engine is restarted", lambda: node.engine_children() not in ([], [child]) and node.serves(), 20)
    grid.wait_for_workers(2)


def test_an_answer_waits_for_its_only_worker_to_come_back():
    with Grid() as grid:
        gateway = grid.add("gateway")
        worker = grid.add("worker", serve=MODEL, join=gateway)
        grid.wait_for_workers(1)
        undisturbed = failover.ask(gateway, "the last node", 3)
        killed = []

        def kill(answer):
            if not killed and len(answer.chunks) >= 40:
                worker.kill()
                killed.append(len(answer.chunks))
                worker.start(wait=False)

        answer = failover.ask(gateway, "the last node", 3, kill)
        assert killed and answer.complete, answer.error
        assert answer.text == undisturbed.text


def test_tool_calls_go_on_after_kill_9(grid):
    """The arguments of a call are cut anywhere; what the client puts together is the same calls, every one valid."""
    gateway = grid.nodes[0]
    openai = package.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=60)
    parameters = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters, "strict": True}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is the weather in Paris and in Rome?"}],
            "tools": [tool], "tool_choice": "required", "temperature": 0, "max_tokens": 700, "stream": True}

    def calls(on_delta=lambda raw, count: None):
        raw = openai.chat.completions.with_raw_response.create(**body)
        pieces, finish = {}, None
        for count, chunk in enumerate(raw.parse()):
            choice = chunk.choices[0]
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                pieces[delta.index] = pieces.get(delta.index, "") + (delta.function.arguments or "")
            on_delta(raw, count)
        assert finish == "tool_calls"
        return [json.loads(pieces[index]) for index in sorted(pieces)], count

    killed = []

    def kill(raw, count):
        if not killed and count >= chunks // 2:
            killed.append(grid.by_peer_id(raw.headers["x-opengrid-worker"]))
            killed[0].kill()

    undisturbed, chunks = calls()
    assert undisturbed and chunks > 20 and all(call["city"] in ("Paris", "Rome") for call in undisturbed)
    before = gateway.metrics()["opengrid_node_failovers_total"]
    assert calls(kill)[0] == undisturbed
    assert killed and gateway.metrics()["opengrid_node_failovers_total"] > before
    killed[0].restart()
    grid.wait_for_workers(2)
