"""Refreshes the recorded answers of llama-server and fails when they change. `./test --engines` runs it."""

import pathlib
import sys

import grid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "scenarios"))

import oracle  # noqa: E402
from table import SCENARIOS  # noqa: E402


def test_llama_server_answers_as_recorded():
    before = oracle.recorded() if oracle.RECORDED.exists() else {}
    now = oracle.record(SCENARIOS, grid.model_file(), grid.embedding_model_file())
    oracle.write(now)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    assert not changed, f"recorded.json was rewritten; look at it, then commit it: {changed}"
