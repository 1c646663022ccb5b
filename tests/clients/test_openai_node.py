"""The official `openai` package for Node, by its own tests in `node/`; `./test` installs it."""

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


def test_openai_for_node(gateway):
    if not (NODE / "node_modules" / "openai").is_dir():
        pytest.fail(f"the package is not installed: npm ci --prefix {NODE}; ./test does that")
    env = grid.base_env("") | {"OPENGRID_URL": gateway.url, "OPENGRID_MODEL": grid.MODEL}
    command = ["node", "--test", "--test-reporter=tap", "openai.test.mjs"]
    done = subprocess.run(command, cwd=NODE, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"^# pass (\d+)", done.stdout, re.M)[1]) >= 7, done.stdout
