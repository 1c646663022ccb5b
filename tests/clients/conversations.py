"""A conversation after which even a small model calls a tool by itself, and the tool."""

import json

QUESTION = "What is the weather in Paris for 2 days?"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city", "parameters": PARAMETERS, "strict": True},
}
CALLED = [("Rome", 1), ("Paris", 2), ("Rome", 3)]


def openai_history():
    for number, (city, days) in enumerate(CALLED):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city, "days": days})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        yield {"role": "user", "content": f"What is the weather in {city} for {days} days?"}
        yield {"role": "assistant", "content": None, "tool_calls": [call]}
        yield {"role": "tool", "tool_call_id": f"call_{number}", "content": "sunny"}


MESSAGES = [*openai_history(), {"role": "user", "content": QUESTION}]


def is_a_good_call(name, arguments):
    return name == "get_weather" and arguments["city"] in ("Paris", "Rome") and arguments["days"] in (1, 2, 3)
