"""Structured output holds for schemas that nobody chose, at temperature 1, and when the worker dies mid-object."""

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest

import client
from grid import MODEL, Grid
from schemas import random_schema

SCHEMAS = int(os.environ.get("OPENGRID_TEST_SCHEMAS", "200"))
SEED = int(os.environ.get("OPENGRID_TEST_SEED", "1"))
STREAMS = 8
# Room for the longest value that a schema allows, every character escaped.
TOKENS_MAX = 1500
# Every worker writes so many objects, each of them begun, when one is killed.
VICTIM_OBJECTS_MIN = 2
# A kill costs some 2 s here: a worker starts again.
KILLS_MAX = int(os.environ.get("OPENGRID_TEST_KILLS", "12"))
FAILOVERS_MIN = KILLS_MAX


def body(schema, seed):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Make up some data. Number {seed}."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "data", "schema": schema, "strict": True}},
        "temperature": 1,
        "seed": seed,
        "max_tokens": TOKENS_MAX,
    }


def fault(answer, schema):
    """Why the answer is no value of the schema; `None` when it is one."""
    if not answer.complete or answer.finish != "stop":
        return f"status {answer.status}, finish {answer.finish}, {answer.error}: {answer.text!r}"
    try:
        jsonschema.validate(json.loads(answer.text), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{error}: {answer.text!r}"
    return None


class Objects:
    """One answer for each of `SCHEMAS` random schemas, `STREAMS` at once."""

    def __init__(self, gateway):
        rng = random.Random(SEED)
        self.gateway = gateway
        self.schemas = [random_schema(rng) for _ in range(SCHEMAS)]
        # Number of the schema -> what has arrived of its answer.
        self.running = {}

    def ask(self, number):
        def look(answer):
            self.running[number] = answer

        asked = body(self.schemas[number], number)
        answer = client.stream(self.gateway.url, "/v1/chat/completions", asked, look, timeout_s=300)
        self.running.pop(number, None)
        return answer

    def all(self, meanwhile=lambda: None):
        """All answers. `meanwhile()` runs again and again in this thread until the last one is there."""
        started = time.monotonic()
        with ThreadPoolExecutor(STREAMS) as pool:
            futures = [pool.submit(self.ask, number) for number in range(SCHEMAS)]
            while not all(future.done() for future in futures):
                meanwhile()
                time.sleep(0.02)
        answers = [future.result() for future in futures]
        self.judge(answers, time.monotonic() - started)
        return answers

    def judge(self, answers, seconds):
        faults = [(json.dumps(schema), why) for schema, answer in zip(self.schemas, answers) if (why := fault(answer, schema))]
        tokens = [answer.usage["completion_tokens"] for answer in answers if answer.usage]
        print(f"\n{len(answers) - len(faults)} of {len(answers)} valid, {sum(tokens) / len(tokens):.0f} tokens on average, "
              f"{max(tokens)} at most, {seconds:.0f} s")
        assert not faults, f"{len(faults)} invalid, the first: {faults[0]}"


class Killer:
    """Kills a worker that is writing objects while the others write some, too (so they live); brings it back; then the
    next."""

    def __init__(self, grid, objects):
        self.objects = objects
        self.workers = grid.nodes[1:]
        self.kills = 0
        # Number of the schema -> the text that was there when its first worker died.
        self.cut = {}

    def begun(self, worker):
        return {number: answer.text for number, answer in list(self.objects.running.items())
                if answer.headers["x-opengrid-worker"] == worker.peer_id and number not in self.cut}

    def __call__(self):
        if self.kills < KILLS_MAX and all(len(self.begun(worker)) >= VICTIM_OBJECTS_MIN for worker in self.workers):
            victim = self.workers[self.kills % len(self.workers)]
            victim.kill()
            self.cut |= self.begun(victim)
            self.kills += 1
            victim.restart()


@pytest.fixture(scope="module")
def grid():
    with Grid() as grid:
        gateway = grid.add("gateway")
        for name in ("worker-1", "worker-2"):
            grid.add(name, serve=MODEL, join=gateway)
        yield grid.wait_for_workers(2)


@pytest.fixture(scope="module")
def undisturbed(grid):
    return Objects(grid.nodes[0]).all()


def test_random_schemas_are_kept_to(undisturbed):
    assert len({answer.text for answer in undisturbed}) > SCHEMAS / 2, "they are values of many schemas"


def test_random_schemas_are_kept_to_when_workers_die_mid_object(grid, undisturbed):
    objects = Objects(grid.nodes[0])
    killer = Killer(grid, objects)
    answers = objects.all(killer)
    # Those that had not ended when the worker died: another one wrote the rest.
    moved = [number for number, text in killer.cut.items() if text != answers[number].text]
    failovers = grid.nodes[0].metrics()["opengrid_node_failovers_total"]
    print(f"{killer.kills} kills, {len(moved)} objects continued by another worker, {failovers:.0f} failovers")
    assert failovers >= len(moved) >= FAILOVERS_MIN, "objects were cut in the middle"
    assert all(answers[number].text.startswith(killer.cut[number]) for number in moved)
    assert [answer.text for answer in answers] == [answer.text for answer in undisturbed]
