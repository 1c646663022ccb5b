"""Tools: called, forced, refused, and their results."""

import json

from scenario import Scenario, greedy, user
from table.reasons import CALLS, CALLS_STREAM, CALLS_STREAM_USAGE, CHAT, ERROR, client_fault, refused

PATH = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CALLED = [("Rome", 1), ("Paris", 2), ("Rome", 3)]
QUESTION = user("What is the weather in Paris for 2 days?")
OPENAI_TOO = refused("OpenAI refuses it as well")
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def turns():
    """A conversation in which tools were called: the oracle lets a model chat before a call, so it must want to call."""
    for number, (city, days) in enumerate(CALLED):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city, "days": days})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        yield {"role": "user", "content": f"What is the weather in {city} for {days} days?"}
        yield {"role": "assistant", "content": None, "tool_calls": [call]}
        yield {"role": "tool", "tool_call_id": f"call_{number}", "content": "sunny"}


HISTORY = [*turns(), *QUESTION]


def row(name, differs=CHAT, text=False, messages=HISTORY, tools=(WEATHER, CLOCK), **fields):
    body = greedy(messages=messages, tools=list(tools), **fields) | {"max_tokens": 96}
    return Scenario(f"tools: {name}", PATH, body, differs=differs, text=text, oracle="tools")


ROWS = [
    row("none is called", messages=QUESTION, tool_choice="none"),
    row("auto", CALLS),
    row("required", CALLS, tool_choice="required"),
    row("named", CALLS, tool_choice=NAMED),
    row("one call at most", CALLS, tool_choice="required", parallel_tool_calls=False),
    row("a result", messages=list(turns())),
    row("required, streamed", CALLS_STREAM, tool_choice="required", stream=True),
    row("named, streamed", CALLS_STREAM, tool_choice=NAMED, stream=True),
    row("named, streamed with usage", CALLS_STREAM_USAGE, tool_choice=NAMED, stream=True, stream_options={"include_usage": True}),
    row("an empty list", tools=()),
    row("a choice that is not offered", OPENAI_TOO, tool_choice={"type": "function", "function": {"name": "nothing"}}),
    row("a choice without tools", OPENAI_TOO, tools=(), tool_choice="required"),
    row("an unknown choice", ERROR, tool_choice="maybe"),
    row("a function without a name", client_fault(400, 500), tools=({"type": "function", "function": {}},)),
    row("a tool of another type", client_fault(400, 500), tools=({"type": "telepathy"},)),
    row("a result of no call", messages=[*QUESTION, {"role": "tool", "tool_call_id": "x", "content": "?"}]),
]
