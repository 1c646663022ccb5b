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


def record(scenarios, chat_model, embedding_model):
    """What llama-server answers to each scenario now. The models are paths of GGUF files."""
    reference.build()
    models = {"chat": chat_model, "tools": chat_model, "embedding": embedding_model}
    with ExitStack() as stack:
        needed = sorted({scenario.oracle for scenario in scenarios})
        urls = {name: stack.enter_context(server(name, models[name])).url for name in needed}
        return {scenario.name: scenario.ask(urls[scenario.oracle]) for scenario in scenarios}


def server(name, model):
    # The default model's own template has no place for tools, and llama-server then forgets them.
    tools = ["--chat-template-file", reference.OUT / "src/vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"]
    options = {
        "chat": ["--jinja", "--alias", grid.MODEL],
        "tools": ["--jinja", "--alias", grid.MODEL, *map(str, tools)],
        "embedding": ["--embedding", "--alias", grid.EMBEDDING_MODEL],
    }
    return reference.Server("exact", model, 1, 2, 2048, options[name])


def write(answers):
    rows = (f"{json.dumps(name)}: {json.dumps(answer, ensure_ascii=False)}" for name, answer in sorted(answers.items()))
    RECORDED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
