"""A known model that nobody serves is told at once, in OpenAI's shape."""

import json
import time

import openai as package
import pytest

import client
from grid import MODEL, Grid

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def lonely():
    with Grid() as grid:
        yield grid.add("lonely")


def test_503_with_retry_after_and_no_hang(lonely):
    started = time.monotonic()
    status, headers, body = client.request(lonely.url, "POST", "/v1/chat/completions", CHAT)
    assert status == 503, body
    assert int(headers["retry-after"]) >= 1
    assert MODEL in json.loads(body)["error"]["message"]
    assert time.monotonic() - started < 1.5


def test_the_openai_package_sees_a_server_error(lonely):
    openai = package.OpenAI(base_url=f"{lonely.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(package.InternalServerError) as caught:
        openai.chat.completions.create(**CHAT)
    assert caught.value.status_code == 503
    assert [model.id for model in openai.models.list()] == []


def test_health_stays_good(lonely):
    assert client.request(lonely.url, "GET", "/health")[0] == 200
