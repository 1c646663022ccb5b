"""The official `openai` package for Node, by the tests in `node/`; `./test` installs what they need."""

import json
import pathlib
import re
import subprocess

import pytest

import grid

NODE = pathlib.Path(__file__).with_name("node")


def test_the_lock_file_names_no_registry():
    lock = json.loads((NODE / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    for name, entry in packages.items():
        assert "resolved" not in entry, f"{name} is tied to a registry's address"
        assert entry["integrity"].startswith("sha512-"), f"{name} could be any bytes"


def passes(file, tests_min, env):
    if not all((NODE / "node_modules" / name).is_dir() for name in ("openai", "zod")):
        pytest.fail(f"the packages are not installed: npm ci --prefix {NODE}; ./test does that")
    env = grid.base_env("") | {"OPENGRID_MODEL": grid.MODEL} | env
    # One test at a time: they share the nodes, some of which have one slot.
    command = ["node", "--test", "--test-reporter=tap", "--test-concurrency=1", file]
    done = subprocess.run(command, cwd=NODE, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"^# pass (\d+)", done.stdout, re.M)[1]) >= tests_min, done.stdout


def test_chat(gateway):
    passes("chat.test.mjs", 7, {"OPENGRID_URL": gateway.url})


def test_tools_formats_and_embeddings(gateway, embedding_gateway):
    embedding = {"OPENGRID_EMBEDDING_URL": embedding_gateway.url, "OPENGRID_EMBEDDING_MODEL": grid.EMBEDDING_MODEL}
    passes("tools.test.mjs", 6, {"OPENGRID_URL": gateway.url} | embedding)


def test_failures(slow_node, closed_node, new_key):
    keys = {
        "OPENGRID_READ_KEY": new_key("--scope", "read"),
        "OPENGRID_SMALL_KEY": new_key("--tokens-per-minute", "500"),
        "OPENGRID_MINUTE_KEY": new_key("--requests-per-minute", "60"),
    }
    passes("failures.test.mjs", 4, {"OPENGRID_SLOW_URL": slow_node.url, "OPENGRID_CLOSED_URL": closed_node.url} | keys)
