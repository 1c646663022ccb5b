"""Renders every template here with Python's jinja2 (3.1.6), set up as transformers' `apply_chat_template` does, and
writes `expected.json`. Run it after changing a template or a conversation: `python reference.py`.

`None` stands for a template that refuses (`raise_exception`). Dates are left open: `<<%d %b %Y>>`.
"""

import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent
BOS, EOS = "<s>", "</s>"

USER = {"role": "user", "content": ' Hello <b>& "you" é😀\n'}
SYSTEM = {"role": "system", "content": "You are terse."}
ANSWER = {"role": "assistant", "content": "Hi there. "}
STOP = {"role": "user", "content": "please stop"}
TOOLS = [
    {
        "name": "get_weather",
        "description": 'The weather "now" in a city',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer", "description": "How many"},
            },
            "required": ["city"],
        },
    },
    {"name": "get_time", "description": "", "parameters": {"type": "object", "properties": {}}},
]
ASK = {"role": "user", "content": "Weather in Köln?"}
CALL = {"id": "abcdef123", "name": "get_weather", "arguments": {"city": 'Köln <b> "é"', "days": 2}}
OTHER_CALL = {"id": "abcdef124", "name": "get_time", "arguments": {}}
RESULT = {"role": "tool", "content": '{"degrees": 20}', "tool_call_id": "abcdef123", "name": "get_weather"}
OTHER_RESULT = {"role": "tool", "content": "noon", "tool_call_id": "abcdef124", "name": "get_time"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}

PLAIN = {
    "user": [USER],
    "system_user": [SYSTEM, USER],
    "turns": [USER, ANSWER, STOP],
    "system_turns": [SYSTEM, USER, ANSWER, STOP],
    "two_users": [USER, STOP],
}
WITH_TOOLS = {
    "asked": [ASK],
    "system_asked": [SYSTEM, ASK],
    "called": [ASK, CALLING, RESULT],
    "called_twice": [ASK, {**CALLING, "tool_calls": [CALL, OTHER_CALL]}, RESULT, OTHER_RESULT],
    "answered": [SYSTEM, ASK, CALLING, RESULT, {"role": "assistant", "content": "20 degrees."}, STOP],
}
# What knows nothing of calls is not asked to render them, and not every template knows tools.
NO_CALLS = {"gemma", "mistral", "python_idioms", "smollm2", "phi3_5", "phi4_mini", "llama3", "smollm3", "qwen2_5_short"}

# Meant for conversations with tools only.
TOOLS_ONLY = {"hermes3"}


class Refused(Exception):
    pass


class Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it is nothing."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)


def refuse(message):
    raise Refused(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: f"<<{form}>>"
    return env


def openai_shape(message):
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls} if calls else message


def render(template, messages, tools):
    tools = [{"type": "function", "function": tool} for tool in tools] or None
    messages = [openai_shape(message) for message in messages]
    try:
        return template.render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=True, bos_token=BOS, eos_token=EOS
        )
    except Refused:
        return None


def main():
    expected = {}
    for file in sorted(HERE.glob("*.jinja")):
        template = environment().from_string(file.read_text())
        plain = {} if file.stem in TOOLS_ONLY else PLAIN
        renderings = {name: render(template, messages, []) for name, messages in plain.items()}
        if file.stem not in NO_CALLS:
            renderings |= {name: render(template, messages, TOOLS) for name, messages in WITH_TOOLS.items()}
        expected[file.stem] = renderings
    fixture = {
        "conversations": PLAIN | WITH_TOOLS,
        "tools": TOOLS,
        "with_tools": list(WITH_TOOLS),
        "bos": BOS,
        "eos": EOS,
        "expected": expected,
    }
    (HERE / "expected.json").write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
