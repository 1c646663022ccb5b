"""Real external engines behind a worker of a real grid: gateway -> worker -> engine."""

import json
import re
import statistics
import threading
import time

import pytest

import client
import engines
from failover import Load
from grid import MODEL, Grid, run, wait_until

PROMPT = {"messages": [{"role": "user", "content": "Name three rivers of Europe and say a word about each."}]}
# Where the model is sure: between two words that are about as likely, kernels that round otherwise choose otherwise.
SURE = {"prompt": "Numbers: one, two, three, four, five, six, seven, eight, nine, ten. Again: one, two, three,"}
TOKENS = 24


@pytest.fixture(scope="module", params=[engines.LlamaServer, engines.Vllm], ids=lambda kind: kind.name)
def setup(request, tmp_path_factory):
    """(engine, grid): a gateway and a worker whose engine is external."""
    request.param.set_up()
    with request.param(tmp_path_factory.mktemp("engine")) as engine, Grid() as grid:
        gateway = grid.add("gateway")
        grid.add("worker", serve=MODEL, join=gateway, options=["--engine", engine.url])
        yield engine, grid.wait_for_workers(1, timeout_s=120)


@pytest.fixture
def engine(setup):
    return setup[0]


@pytest.fixture
def gateway(setup):
    return setup[1].nodes[0]


@pytest.fixture
def worker(setup):
    return setup[1].nodes[1]


def chat(node, **options):
    body = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0} | PROMPT | options
    return client.stream(node.url, "/v1/chat/completions", body, timeout_s=180)


def complete(node):
    body = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True} | SURE
    return client.stream(node.url, "/v1/completions", body, timeout_s=180)


def post(node, path, body):
    status, _, answer = client.request(node.url, "POST", path, body, timeout_s=180)
    return status, json.loads(answer)


def served(node):
    return node.status()["models"][0]


def test_the_engine_is_shown_with_its_version(engine, worker):
    model = served(worker)
    print(f"\n{engine.name}: {model['engine']}, {model['slots']} slots of {model['context_tokens']} tokens, "
          f"{model['decode_tokens_per_s']:.0f} tok/s, {model['class']}")
    assert re.match(rf"{engine.name} \S+ at {engine.url}", model["engine"])
    assert model["class"] == "approximate" and model["context_tokens"] == engines.CONTEXT_TOKENS
    for command in ("ps", "status"):
        assert engine.name in run(command, "--home", str(worker.home), env=worker.env).stdout


def test_greedy_text_against_the_embedded_engine(engine, gateway):
    answers = [complete(gateway) for _ in range(2)]
    assert all(answer.complete and answer.usage["completion_tokens"] == TOKENS for answer in answers)
    assert len(answers[0].chunks) > TOKENS / 2, "it streams"
    with Grid() as other:
        node = other.add("embedded", serve=MODEL)
        other.wait_for_workers(1)
        embedded = complete(node).text
    same = len(next_common(answers[0].text, embedded))
    print(f"\n{engine.name}: {answers[0].text!r}\nembedded: {embedded!r}\n{same} of {len(embedded)} characters in common")
    # Other kernels, other roundings: the beginning is the same, later words may differ.
    assert same >= 10


def next_common(one, other):
    length = next((index for index, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), min(len(one), len(other)))
    return one[:length]


def test_characters_of_many_tokens_come_whole(gateway):
    """In this vocabulary an emoji or a Chinese character is two to four tokens."""
    body = {"model": MODEL, "prompt": "🙂🙃😀😁東京大阪🙂🙃😀😁東京大阪🙂🙃😀😁東京大阪🙂🙃", "max_tokens": 40, "temperature": 0,
            "ignore_eos": True}
    answer = client.stream(gateway.url, "/v1/completions", body, timeout_s=180)
    print(f"\n{answer.text!r}")
    assert answer.complete and answer.usage["completion_tokens"] == 40
    assert any(ord(char) > 0x2000 and char != "\N{REPLACEMENT CHARACTER}" for char in answer.text)


def test_logprobs_are_by_token(gateway):
    body = {"model": MODEL, "max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 3} | PROMPT
    status, answer = post(gateway, "/v1/chat/completions", body)
    assert status == 200, answer
    for token in answer["choices"][0]["logprobs"]["content"]:
        tops = [top["logprob"] for top in token["top_logprobs"]]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True) and token["logprob"] == tops[0] < 0


def test_a_seed_repeats_and_another_does_not(gateway):
    texts = [chat(gateway, temperature=1, seed=seed).text for seed in (1, 1, 2)]
    print(f"\n{texts}")
    assert texts[0] != texts[2]
    assert next_common(texts[0], texts[1]), "the same draws at first"


def test_an_end_token_ends_and_can_be_ignored(gateway):
    asked = {"messages": [{"role": "user", "content": "Say only: ok"}], "max_tokens": 60}
    ended = chat(gateway, **asked)
    assert ended.complete and (ended.finish == "length") == (ended.usage["completion_tokens"] == 60)
    longer = chat(gateway, ignore_eos=True, **asked)
    assert longer.finish == "length" and longer.usage["completion_tokens"] == 60


def test_what_the_engine_cannot_do_is_no_capacity(gateway):
    """Another worker that can may come; the model is there all the time."""
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    for demand in ({"response_format": {"type": "json_object"}}, {"tools": [tool], "tool_choice": "required"}):
        status, headers, body = client.request(gateway.url, "POST", "/v1/chat/completions",
                                               {"model": MODEL, "max_tokens": 4} | PROMPT | demand)
        message = f"no node that serves `{MODEL}` right now can do what this request asks for"
        error = {"message": message, "type": "service_unavailable_error", "param": None, "code": "no_capacity"}
        assert (status, json.loads(body)) == (503, {"error": error})
        assert int(headers["retry-after"]) >= 1
    assert chat(gateway, max_tokens=4).complete


def test_speed_through_the_worker_against_the_engine_alone(engine, gateway):
    prompt = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767] * 3
    ours = {"model": MODEL, "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True}
    theirs = ours | {"model": "smollm2"}

    def rate(url, body):
        return client.stream(url, "/v1/completions", body, timeout_s=180).decode_tokens_per_s

    pairs = [(rate(gateway.url, ours), rate(engine.url, theirs)) for _ in range(6)]
    # Side by side, pair by pair: both feel what else the machine does.
    through, alone = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"\n{engine.name}: {through:.1f} tok/s through gateway and worker, {alone:.1f} alone, ratio {ratio:.3f}")
    assert ratio > 0.6


def test_a_restart_under_load_is_survived(engine, gateway, worker):
    """Requests wait for the engine, which comes back in time; a second worker would take them over."""
    answers = []

    def ask():
        answers.append(chat(gateway, max_tokens=200, ignore_eos=True))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    wait_until("both answers run", lambda: served(worker)["slots_busy"] >= 2, 60)
    time.sleep(1.5)
    engine.kill()
    wait_until("the worker sees it", lambda: served(worker)["state"] == "restarting", 10)
    began = time.monotonic()
    engine.start(wait=False)
    for asker in askers:
        asker.join(timeout=180)
    back_s = time.monotonic() - began
    complete = [answer for answer in answers if answer.complete and answer.usage["completion_tokens"] == 200]
    print(f"\n{engine.name}: killed amid 2 answers of 200 tokens, {len(complete)} complete {back_s:.1f} s after its new start")
    if engine.name == "llama-server":
        assert len(complete) == 2, answers
    else:
        # It loads for longer than an answer waits for a worker (60 s on a slow machine): then there is an error.
        assert all(answer.complete or answer.error for answer in answers), answers
    engine.wait()
    wait_until("the worker serves again", lambda: served(worker)["state"] == "ready", 60)
    assert wait_until("and answers", lambda: chat(gateway, max_tokens=4).complete, 30)


def test_requests_move_to_another_worker(setup, engine, gateway):
    _, grid = setup
    grid.add("embedded", serve=MODEL, join=gateway)
    grid.wait_for_workers(2)
    with Load(gateway, 3) as load:
        wait_until("tokens flow", lambda: load.tokens > 20, 60)
        engine.kill()
        before = load.tokens
        wait_until("they go on", lambda: load.tokens > before + 60, 60)
    assert not load.errors, load.errors
    engine.start()
