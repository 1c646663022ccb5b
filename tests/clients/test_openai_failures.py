"""The official `openai` package when things go wrong: errors, retries, timeouts, hang-ups."""

import time

import openai as package
import pytest

import client
from grid import MODEL, Grid

HELLO = [{"role": "user", "content": "Hello"}]


def connect(node, **options):
    return package.OpenAI(**{"base_url": f"{node.url}/v1", "api_key": "unused", "max_retries": 0, "timeout": 60} | options)


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
        ({"max_tokens": 10**12}, package.BadRequestError, "invalid_value"),
        ({"n": 0}, package.BadRequestError, "invalid_value"),
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


def test_keys_and_their_limits_are_the_right_classes(closed_node, new_key):
    chat = {"model": MODEL, "messages": HELLO, "max_tokens": 2}
    with pytest.raises(package.AuthenticationError) as caught:
        connect(closed_node).chat.completions.create(**chat)
    assert caught.value.code == "invalid_api_key" and caught.value.type == "authentication_error"
    with pytest.raises(package.PermissionDeniedError) as caught:
        connect(closed_node, api_key=new_key("--scope", "read")).chat.completions.create(**chat)
    assert caught.value.code == "insufficient_permissions"
    small = connect(closed_node, api_key=new_key("--tokens-per-minute", "500"), max_retries=3)
    started = time.monotonic()
    with pytest.raises(package.RateLimitError) as caught:
        small.chat.completions.create(**chat | {"max_tokens": 501})
    assert caught.value.code == "rate_limit_exceeded"
    assert time.monotonic() - started < 1, "what can never be is not tried again"


def test_a_body_too_large_is_413(openai):
    with pytest.raises(package.APIStatusError) as caught:
        openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * (9 << 20)}])
    assert caught.value.status_code == 413 and caught.value.code


def test_a_model_that_nobody_serves_is_a_server_error():
    with Grid() as grid, pytest.raises(package.InternalServerError) as caught:
        connect(grid.add("lonely")).chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.status_code == 503 and caught.value.code == "no_capacity"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_format_that_no_worker_can_keep_to_is_a_server_error(slow_node):
    """The fake engine knows no grammars, as external engines do not: tests/engines."""
    with pytest.raises(package.InternalServerError, match="can do what this request asks for") as caught:
        connect(slow_node).chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "json_object"})
    assert caught.value.status_code == 503 and caught.value.code == "no_capacity"
    assert int(caught.value.response.headers["retry-after"]) >= 1


def counting(seen, then=lambda: None):
    """An HTTP client that notes status and `Retry-After` of every answer."""

    def note(response):
        seen.append((response.status_code, response.headers.get("retry-after")))
        if response.status_code >= 400:
            then()

    return package.DefaultHttpxClient(event_hooks={"response": [note]})


def test_the_client_retries_until_the_grid_has_room(slow_node):
    running, seen = endless(connect(slow_node), stream=True), []
    next(iter(running))
    openai = connect(slow_node, max_retries=4, http_client=counting(seen, running.close))
    answer = openai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert seen[0][0] == 503 and int(seen[0][1]) >= 1, "a full grid says 503 and when to come back"
    assert seen[-1][0] == 200


def test_the_client_waits_for_the_limit_of_its_key(closed_node, new_key):
    seen = []
    key = new_key("--requests-per-minute", "60")
    hasty, patient = (connect(closed_node, api_key=key, max_retries=n, http_client=counting(seen)) for n in (0, 3))
    with pytest.raises(package.RateLimitError):
        for _ in range(200):
            hasty.models.list()
    assert seen[-1][0] == 429 and int(seen[-1][1]) >= 1
    del seen[:]
    started = time.monotonic()
    assert patient.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2).usage.completion_tokens == 2
    assert [status for status, _ in seen] == [429, 200], "it comes back once, and not too early"
    assert 0.3 < time.monotonic() - started < 5


def test_a_timeout_ends_the_answer_at_the_worker(slow_node, idle):
    openai = connect(slow_node, timeout=1)
    started = time.monotonic()
    with pytest.raises(package.APITimeoutError):
        endless(openai)
    assert time.monotonic() - started < 5
    idle(slow_node)


def test_hanging_up_ends_the_answer_at_the_worker(slow_node, idle):
    def running():
        return slow_node.status()["sessions_running"], slow_node.metrics()["opengrid_num_requests_running"]

    stream = endless(connect(slow_node), stream=True)
    for _ in zip(range(5), stream):
        pass
    assert running() == (1, 1)
    stream.close()
    idle(slow_node)
    assert running() == (0, 0)


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
