"""The official `openai` package when things go wrong: errors, retries, timeouts, hang-ups. The rest: e2e/test_openai_client."""

import time

import openai as package
import pytest

import client
from grid import MODEL, wait_until

HELLO = [{"role": "user", "content": "Hello"}]


def connect(node, **options):
    return package.OpenAI(**{"base_url": f"{node.url}/v1", "api_key": "unused", "max_retries": 0, "timeout": 60} | options)


def idle(node):
    return node.status()["sessions_running"] == 0


def endless(openai, **options):
    """An answer of 80 s."""
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    return openai.chat.completions.create(**body, **options)


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"model": "gpt-nonexistent"}, package.NotFoundError, "model_not_found"),
        ({"messages": []}, package.BadRequestError, "invalid_value"),
        ({"temperature": 9}, package.BadRequestError, "invalid_value"),
        ({"max_tokens": "many"}, package.BadRequestError, "invalid_type"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, package.BadRequestError, "context_length_exceeded"),
    ],
)
def test_errors_are_the_right_classes(openai, change, error, code):
    with pytest.raises(error) as caught:
        openai.chat.completions.create(**{"model": MODEL, "messages": HELLO} | change)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == next(iter(change))
    assert caught.value.request_id.startswith("req_")


def test_the_client_retries_until_the_grid_has_room(slow_node):
    running = endless(connect(slow_node), stream=True)
    next(iter(running))
    refused = []

    def hang_up_after_the_first_refusal(response):
        if response.status_code == 503:
            refused.append(int(response.headers["retry-after"]))
            running.close()

    http = package.DefaultHttpxClient(event_hooks={"response": [hang_up_after_the_first_refusal]})
    openai = connect(slow_node, max_retries=4, http_client=http)
    answer = openai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert refused and refused[0] >= 1, "a full grid says 503 and when to come back"


def test_a_timeout_ends_the_answer_at_the_worker(slow_node):
    openai = connect(slow_node, timeout=1)
    started = time.monotonic()
    with pytest.raises(package.APITimeoutError):
        endless(openai)
    assert time.monotonic() - started < 5
    wait_until("the worker stops", lambda: idle(slow_node), 5)


def test_hanging_up_ends_the_answer_at_the_worker(slow_node):
    stream = endless(connect(slow_node), stream=True)
    for _ in zip(range(5), stream):
        pass
    assert not idle(slow_node)
    stream.close()
    wait_until("the worker stops", lambda: idle(slow_node), 5)
    generated = slow_node.status()["tokens_generated"]
    time.sleep(0.3)
    assert slow_node.status()["tokens_generated"] == generated


def test_a_gateway_that_is_gone_is_a_connection_error():
    openai = package.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="unused", max_retries=0)
    with pytest.raises(package.APIConnectionError):
        openai.models.list()


def test_async_clients_run_side_by_side(gateway):
    import asyncio

    async def ask():
        async with package.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused") as openai:
            one = lambda n: openai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=n, temperature=0)  # noqa: E731
            return await asyncio.gather(*(one(n) for n in (1, 2, 3, 4)))

    assert [answer.usage.completion_tokens for answer in asyncio.run(ask())] == [1, 2, 3, 4]


def test_the_request_id_of_an_answer_is_the_servers(openai, gateway):
    raw = openai.models.with_raw_response.list()
    assert raw.request_id and raw.request_id == raw.headers["x-request-id"]
    status, headers, _ = client.request(gateway.url, "GET", "/v1/models")
    assert status == 200 and headers["x-request-id"] != raw.request_id
