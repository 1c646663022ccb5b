"""llama-server as the oracle, started as the benchmarks start it: in the exact class, where greedy text is the same."""

import json
import pathlib
import sys
from contextlib import ExitStack

import grid

sys.path.insert(0, str(grid.ROOT / "benches"))

import reference  # noqa: E402

RECORDED = pathlib.Path(__file__).with_name("recorded.json")


def recorded():
    return json.loads(RECORDED.read_text())


def record(scenarios, models):
    """What llama-server answers to each scenario now. `models`: oracle name -> path of its GGUF file."""
    reference.build()
    needed = {scenario.oracle for scenario in scenarios}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(server(name, models[name])).url for name in sorted(needed)}
        return {scenario.name: scenario.ask(urls[scenario.oracle]) for scenario in scenarios}


def server(name, model):
    options = ["--jinja", "--alias", grid.MODEL] if name == "chat" else ["--embedding", "--pooling", "mean", "--alias", name]
    return reference.Server("exact", model, 1, 2, 2048, options)


def write(answers):
    rows = (f"{json.dumps(name)}: {json.dumps(answer, ensure_ascii=False)}" for name, answer in sorted(answers.items()))
    RECORDED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
