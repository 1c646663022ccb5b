"""`/v1/messages`, the Anthropic shape."""

from grid import MODEL
from scenario import Scenario, user
from table import tools
from table.reasons import refused
from table.tools import CALLED

PATH = "/v1/messages"
CAPITAL = user("What is the capital of France?")
HEADERS = {"anthropic-version": "2023-06-01", "x-api-key": "unused"}
WEATHER = tools.WEATHER["function"]
TOOL = {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}
FORCED = {"text": False, "tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 96}


def turns():
    """Tools were called before: the oracle lets a model chat before a call, so it must want to call."""
    for number, (city, days) in enumerate(CALLED):
        use = {"type": "tool_use", "id": f"t{number}", "name": "get_weather", "input": {"city": city, "days": days}}
        result = {"type": "tool_result", "tool_use_id": f"t{number}", "content": "sunny"}
        yield {"role": "user", "content": f"What is the weather in {city} for {days} days?"}
        yield {"role": "assistant", "content": [use]}
        yield {"role": "user", "content": [result]}
        yield {"role": "assistant", "content": "Sunny."}


CACHE = "Anthropic's count of what was written to its cache, 0 here"
LATER = "Anthropic repeats the counts at the end"
WHOLE = {"+usage.cache_creation_input_tokens": CACHE}
STREAM = {
    "+message_start.message.usage.cache_creation_input_tokens": CACHE,
    "+message_delta.usage.cache_creation_input_tokens": CACHE,
    "+message_delta.usage.cache_read_input_tokens": LATER,
    "+message_delta.usage.input_tokens": LATER,
}
CALL_STREAM = STREAM | {"+content_block_start.content_block.input": "Anthropic's block begins with an empty input"}
STOPPED = "Anthropic's reason says that a stop sequence was found"
REASON = '="stop_sequence" != ="end_turn"'
ANTHROPIC_TOO = refused("Anthropic refuses it as well")


def row(name, differs=WHOLE, text=True, **fields):
    body = {"model": MODEL, "max_tokens": 16, "temperature": 0, "messages": CAPITAL} | fields
    return Scenario(f"messages: {name}", PATH, body, headers=HEADERS, differs=differs, text=text,
                    oracle="tools" if "tools" in fields else "chat")


ROWS = [
    row("a user message"),
    row("a system text", system="Answer in French."),
    row("system blocks", system=[{"type": "text", "text": "Answer in French."}]),
    row("content blocks", messages=user([{"type": "text", "text": "What is the capital of France?"}])),
    row("a conversation", messages=[*CAPITAL, {"role": "assistant", "content": "Paris."}, *user("And of Italy?")]),
    row("stop sequences", WHOLE | {f"stop_reason: {REASON}": STOPPED}, stop_sequences=["Mar"]),
    row("an answer that ends by itself", messages=user("Say only: yes"), max_tokens=64),
    row("streamed", STREAM, stream=True),
    row("streamed to a stop sequence", STREAM | {f"message_delta.delta.stop_reason: {REASON}": STOPPED}, stream=True, stop_sequences=["Mar"]),
    row("a forced tool", messages=[*turns(), *tools.QUESTION], **FORCED),
    row("a forced tool, streamed", CALL_STREAM, messages=[*turns(), *tools.QUESTION], stream=True, **FORCED),
    row("tool results", text=False, tools=[TOOL], messages=list(turns())[:-1]),
    row("no max_tokens", ANTHROPIC_TOO, False, max_tokens=None),
    row("no messages", ANTHROPIC_TOO, False, messages=[]),
    row("an unknown role", ANTHROPIC_TOO, False, messages=[{"role": "wizard", "content": "Hello"}]),
    row("an unknown model", refused("llama-server answers with the model it has", 404), False, model="claude-nonexistent"),
]
