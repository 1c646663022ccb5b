"""What openapi.json says is what the gateway does: schemathesis asks by the description and checks the answers."""

import json
import pathlib
import subprocess
import sys

import pytest

import client
from grid import EMBEDDING_MODEL, MODEL, Grid, shared_store

SETTINGS = pathlib.Path(__file__).with_name("schemathesis.toml")
# Endless, and the end of the node.
LEFT_OUT = ["--exclude-operation-id", "events", "--exclude-operation-id", "shutdown"]
CASES_MAX = 40
# Answers take no time.
ENGINE = {"OPENGRID_SERVE_ENGINE": "fake", "OPENGRID_SERVE_FAKE_TOKENS_PER_S": "1000000"}


@pytest.fixture(scope="module")
def node():
    for model in (MODEL, EMBEDDING_MODEL):
        shared_store(model)
    with Grid(env=ENGINE) as grid:
        node = grid.add("node", serve=f"{MODEL},{EMBEDDING_MODEL}")
        for model in (MODEL, EMBEDDING_MODEL):
            grid.wait_for_workers(1, model=model)
        yield node


def test_answers_are_as_described(node, tmp_path):
    token = json.loads((node.home / "runtime.json").read_text())["token"]
    command = [
        str(pathlib.Path(sys.executable).with_name("schemathesis")), "--config-file", str(SETTINGS), "run",
        f"{node.url}/grid/v1/openapi.json", "--header", f"Authorization: Bearer {token}", *LEFT_OUT,
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(CASES_MAX), "--seed", "1",
        "--request-timeout", "20", "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout[-300:])
    assert client.request(node.url, "GET", "/health")[0] == 200


def test_the_documentation_needs_no_other_server(node):
    status, headers, page = client.request(node.url, "GET", "/docs")
    assert status == 200 and "unsafe" not in headers["content-security-policy"]
    assert b"http://" not in page and b"https://" not in page
    for path in ("/docs/swagger-ui.js", "/docs/swagger-ui.css", "/docs/docs.js"):
        assert client.request(node.url, "GET", path)[0] == 200, path
