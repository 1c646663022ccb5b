"""Batch invariance from end to end: the same seed and prompt at temperature 0.8 give the same text on two workers
with different thread counts, alone and amid three other streams, with the prompt prefilled in other chunks."""

import os

import pytest

import client
from failover import Load
from grid import MODEL, Grid

PROMPTS = int(os.environ.get("OPENGRID_TEST_PROMPTS", "100"))
ANSWER_TOKENS = 20

THINGS = ["a river", "an old bridge", "winter bread", "a broken radio", "the moon", "a chess game", "glass", "a harbour",
          "rain on tin roofs", "honey bees"]
TASKS = ["Write one line about {}.", "Explain {} to a child.", "Name three words that rhyme with the last word of: {}.",
         "What would a pirate say about {}?", "Describe {} without the letter e.",
         "Here is a list: red, blue, green, yellow, black, white, {}. Which one does not fit, and why? Think aloud.",
         "Translate into French: I have seen {} yesterday and I liked it very much, but my friend did not.",
         "Continue: it was late, the wind had turned, and nobody in the village had thought of {} for years, until",
         "Ask me a question about {}.", "Summarise in five words: {} is not what it was. " + "It was said. " * 30]


def prompts():
    return [task.format(thing) for task in TASKS for thing in THINGS][:PROMPTS]


def texts(node):
    return [answer(node, prompt, seed) for seed, prompt in enumerate(prompts())]


def answer(node, prompt, seed):
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0.8, "seed": seed,
            "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
    got = client.stream(node.url, "/v1/chat/completions", body)
    assert got.complete and got.usage["completion_tokens"] == ANSWER_TOKENS, got
    return got.text


def small_grid(env):
    """A gateway and one worker, apart from all others, so that it is known who answers."""
    grid = Grid(env=env)
    try:
        gateway = grid.add("gateway")
        grid.add("worker", serve=MODEL, join=gateway)
        return grid.wait_for_workers(1)
    except BaseException:
        grid.__exit__(None)
        raise


@pytest.fixture(scope="module")
def alone():
    with small_grid({"OPENGRID_SERVE_THREADS": "1"}) as grid:
        return texts(grid.nodes[0])


def test_another_thread_count_and_three_other_streams(alone):
    with small_grid({"OPENGRID_SERVE_THREADS": "2", "OPENGRID_SERVE_PREFILL_CHUNK": "7"}) as grid, Load(grid.nodes[0], 3) as load:
        amid = texts(grid.nodes[0])
    assert load.tokens > 3 * len(amid) and not load.errors, "the other streams ran all the time"
    different = [number for number, pair in enumerate(zip(alone, amid)) if pair[0] != pair[1]]
    assert len(alone) == PROMPTS and different == []
    assert len(set(alone)) > PROMPTS * 0.9, "the prompts really ask for different things"
