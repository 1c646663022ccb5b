"""Who may use a gateway and how much, with the real binary and the official client."""

import json
import re
import socket
import stat

import openai
import pytest

import client
from grid import MODEL, Grid, run, wait_until

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def closed():
    """A node that asks for keys on loopback, too."""
    with Grid(env={"OPENGRID_API_REQUIRE_KEY": "true"}) as grid:
        node = grid.add("node", serve=MODEL)
        grid.wait_for_workers(1)
        yield node


def keys(node, *arguments):
    done = run("keys", *arguments, "--home", str(node.home), env=node.env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def models(node, key):
    status, _, body = client.request(node.url, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
    return status == 200 and [model["id"] for model in json.loads(body)["data"]]


def lan_address():
    """An address of this machine beyond loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation's addresses: nothing is sent
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def official(node, key, **options):
    return openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 60} | options)


def test_a_key_lives_from_create_to_revoke_while_the_node_runs(closed):
    with pytest.raises(openai.AuthenticationError) as refused:
        official(closed, "unused").models.list()
    assert refused.value.code == "invalid_api_key"
    key = keys(closed, "create", "laptop")
    assert official(closed, key).chat.completions.create(**CHAT).choices[0].message.content
    status, _, _ = client.request(closed.url, "GET", "/v1/models", headers={"x-api-key": key})
    assert status == 200
    headers = {"Authorization": f"Bearer {key}"}
    status, _, body = client.request(closed.url, "GET", "/grid/v1/status", headers=headers)
    assert (status, json.loads(body)["error"]["code"]) == (403, "insufficient_permissions")
    keys(closed, "revoke", "laptop")
    wait_until("the key is refused", lambda: not models(closed, key), 2)


def test_what_is_kept_opens_nothing(closed):
    key = keys(closed, "create", "kept")
    path = closed.home / "keys.json"
    kept = path.read_text()
    assert key not in kept and key[10:] not in kept
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    digest = next(row["digest"] for row in json.loads(kept)["keys"] if row["name"] == "kept")
    assert not models(closed, digest) and not models(closed, key[:9])
    assert key not in closed.log()


def test_the_node_s_own_commands_need_no_key(closed):
    for command in (["status"], ["ps"], ["peers"]):
        done = run(*command, "--home", str(closed.home), env=closed.env)
        assert done.returncode == 0, done.stderr
    done = run("run", MODEL, "hi", "--max-tokens", "2", "--home", str(closed.home), env=closed.env)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_another_machine_s_command_line_uses_a_key(closed, tmp_path):
    arguments = ["status", "--api", closed.url, "--home", str(tmp_path)]
    assert run(*arguments, env=closed.env).returncode == 1
    key = keys(closed, "create", "reader", "--scope", "read")
    done = run(*arguments, env=closed.env | {"OPENGRID_KEY": key})
    assert done.returncode == 0 and closed.peer_id in done.stdout, done.stderr


def test_limits_are_told_and_the_official_client_waits_for_them(closed):
    key = keys(closed, "create", "slow", "--requests-per-minute", "60", "--tokens-per-minute", "600")
    answered = official(closed, key).chat.completions.with_raw_response.create(**CHAT)
    assert answered.headers["x-ratelimit-limit-requests"] == "60"
    assert answered.headers["x-ratelimit-limit-tokens"] == "600"
    used = answered.parse().usage.total_tokens
    left = int(answered.headers["x-ratelimit-remaining-tokens"])
    assert 600 - used <= left <= 600 - used + 30, (used, left)
    assert re.fullmatch(r"(\d+m)?[\d.]+m?s", answered.headers["x-ratelimit-reset-tokens"])
    with pytest.raises(openai.RateLimitError) as refused:
        official(closed, key, max_retries=5).chat.completions.create(**CHAT | {"max_tokens": 601})
    assert refused.value.response.headers["x-should-retry"] == "false", "it did not wait for what never comes"

    quick = keys(closed, "create", "quick", "--requests-per-minute", "120")
    patient, hasty = official(closed, quick, max_retries=3), official(closed, quick)
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(200):
            hasty.models.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after-ms"]) <= 500
    assert patient.models.list().data, "after the time that it was told"


def test_on_loopback_any_text_will_do_but_not_a_revoked_key(shared_grid, gateway):
    for key in ("unused", "sk-something", "x" * 200):
        assert models(gateway, key)
    key = keys(gateway, "create", "tried")
    assert models(gateway, key)
    keys(gateway, "revoke", key)
    wait_until("the key is refused", lambda: not models(gateway, key), 2)
    assert models(gateway, "unused")


def test_beyond_loopback_a_key_is_needed_and_up_says_so():
    with Grid() as grid:
        node = grid.add("node", listen="0.0.0.0")
        address = lan_address()
        url = f"http://{address}:{node.api_port}"
        for path, open_to_all in [("/health", True), ("/", True), ("/v1/models", False),
                                  ("/grid/v1/status", False), ("/metrics", False)]:
            assert client.request(url, "GET", path)[0] == (200 if open_to_all else 401), path
        key = keys(node, "create", "phone")
        headers = {"Authorization": f"Bearer {key}"}
        wait_until("the key opens", lambda: client.request(url, "GET", "/v1/models", headers=headers)[0] == 200, 2)
        assert "opengrid keys create" in node.log(), "`up` says what is needed"
        assert run("status", "--home", str(node.home), env=node.env).returncode == 0


def test_pages_of_named_origins_may_ask():
    app = "https://app.example"
    with Grid(env={"OPENGRID_API_CORS_ORIGINS": app}) as grid:
        node = grid.add("node")
        asked = {"Origin": app, "Access-Control-Request-Method": "POST", "Sec-Fetch-Site": "cross-site",
                 "Access-Control-Request-Headers": "authorization,content-type"}
        status, headers, _ = client.request(node.url, "OPTIONS", "/v1/chat/completions", headers=asked)
        assert (status, headers["access-control-allow-origin"]) == (200, app)
        status, headers, _ = client.request(node.url, "GET", "/v1/models", headers={"Origin": app})
        assert (status, headers["access-control-allow-origin"]) == (200, app)
        assert "x-request-id" in headers["access-control-expose-headers"]
        for foreign in ({"Origin": "https://evil.example"}, {"Origin": app, "Host": "evil.example"}):
            status, headers, _ = client.request(node.url, "OPTIONS", "/v1/chat/completions", headers=asked | foreign)
            assert status == 403 and "access-control-allow-origin" not in headers
        refused = client.request(node.url, "POST", "/grid/v1/shutdown", {}, {"Origin": app})
        assert refused[0] == 401
