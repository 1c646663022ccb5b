"""A web page on another origin, and a rebinding host name, can neither read nor spend through the gateway."""

import json

import pytest

import client
from grid import MODEL

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
READS = ["/v1/models", "/health", "/metrics", "/grid/v1/status", "/grid/v1/peers", "/grid/v1/models", "/grid/v1/events", "/"]
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Host": "evil.example"},
    {"Host": "evil.example:8470"},
    {"Host": "127.0.0.1.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
]


def spent(grid):
    return sum(node.status()["tokens_generated"] for node in grid.nodes)


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: "=".join(next(iter(headers.items()))))
def test_foreign_requests_are_refused(shared_grid, gateway, headers):
    before = spent(shared_grid)
    for path in READS:
        if path == "/" and "Sec-Fetch-Site" in headers:
            continue  # following a link to the page from elsewhere is fine: its scripts are then its own
        status, answer, body = client.request(gateway.url, "GET", path, headers=headers, timeout_s=5)
        assert status == 403, (path, status, body[:100])
        assert "access-control-allow-origin" not in answer
    status, answer, body = client.request(gateway.url, "POST", "/v1/chat/completions", CHAT, headers)
    assert status == 403, body
    assert "error" in json.loads(body)
    assert spent(shared_grid) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_bodies_that_a_form_can_send_are_refused(shared_grid, gateway, kind):
    before = spent(shared_grid)
    status, _, _ = client.request(gateway.url, "POST", "/v1/chat/completions", CHAT, {"Content-Type": kind})
    assert status in (400, 403, 415)
    assert spent(shared_grid) == before


def test_preflights_grant_nothing(gateway):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = client.request(gateway.url, "OPTIONS", "/v1/chat/completions", headers=asked)
    assert status >= 400 and not any(name.startswith("access-control-") for name in headers)


def test_our_own_page_may(gateway):
    own = {"Origin": gateway.url, "Sec-Fetch-Site": "same-origin"}
    status, _, body = client.request(gateway.url, "POST", "/v1/chat/completions", CHAT, own)
    assert status == 200, body
    for host in (f"localhost:{gateway.api_port}", f"127.0.0.1:{gateway.api_port}"):
        assert client.request(gateway.url, "GET", "/health", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("path,body", [("/grid/v1/join", {"invite": "grid1q"}), ("/grid/v1/shutdown", {})])
def test_changing_the_node_needs_the_local_token(gateway, path, body):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        assert client.request(gateway.url, "POST", path, body, headers)[0] in (401, 403)
    assert client.request(gateway.url, "GET", "/health")[0] == 200


def test_the_token_is_for_the_owner_only(gateway):
    mode = (gateway.home / "runtime.json").stat().st_mode
    assert mode & 0o077 == 0, "others must not read the local token"
    allowed = {"Authorization": f"Bearer {gateway.token()}"}
    status, _, body = client.request(gateway.url, "POST", "/grid/v1/join", {"invite": "grid1q"}, allowed)
    assert status == 400, "with the token the invite itself is looked at"
    assert b"invite" in body
