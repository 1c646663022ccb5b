"""`/v1/responses`, stateless."""

import json

from grid import MODEL
from scenario import Scenario, user
from table import tools
from table.reasons import ERROR, refused
from table.tools import CALLED

PATH = "/v1/responses"
QUESTION = "What is the capital of France?"
TOOL = {"type": "function", "strict": True} | tools.WEATHER["function"]
FORCED = {"text": False, "tools": [TOOL], "tool_choice": "required", "max_output_tokens": 96}


def turns():
    """Tools were called before: the oracle lets a model chat before a call, so it must want to call."""
    for number, (city, days) in enumerate(CALLED):
        arguments = json.dumps({"city": city, "days": days})
        yield {"role": "user", "content": f"What is the weather in {city} for {days} days?"}
        yield {"type": "function_call", "call_id": f"c{number}", "name": "get_weather", "arguments": arguments}
        yield {"type": "function_call_output", "call_id": f"c{number}", "output": "sunny"}


ECHOED = "OpenAI's response repeats the request and names all its fields"
FIELDS = (
    "background error incomplete_details instructions max_output_tokens max_tool_calls metadata parallel_tool_calls "
    "previous_response_id prompt_cache_key reasoning safety_identifier service_tier store temperature text tool_choice tools "
    "top_logprobs top_p truncation usage.output_tokens_details user usage.input_tokens_details.cache_write_tokens"
)
WHOLE = {f"+{field}": ECHOED for field in FIELDS.split()} | {"-completed_at": "llama-server's own"}
CUT = 'status: ="incomplete" != ="completed"'
CUT_WHY = "OpenAI says when max_output_tokens cut an answer short"
CUT_SHORT = WHOLE | {CUT: CUT_WHY, f"output[].{CUT}": CUT_WHY}
EVENTS = "OpenAI's events say what they belong to and are numbered; llama-server leaves that out"
STREAM = {
    "+response.created.*": ECHOED,
    "+response.in_progress.*": ECHOED,
    "+response.output_item.added.*": EVENTS,
    "+response.output_item.done.*": EVENTS,
}
TEXT_STREAM = STREAM | {
    "+response.content_part.added.*": EVENTS,
    "+response.content_part.done.*": EVENTS,
    "+response.output_text.delta.*": EVENTS,
    "+response.output_text.done.*": EVENTS,
    "order: *": CUT_WHY,
    "+response.incomplete": CUT_WHY,
    "-response.completed": CUT_WHY,
    f"response.output_item.done.item.{CUT}": CUT_WHY,
}
TOOL_STREAM = STREAM | {
    "+response.function_call_arguments.d*": EVENTS,
    "order: *": "OpenAI says when the arguments are complete",
    "+response.completed.*": ECHOED,
    "-response.completed.timings": "llama-server's own",
}


def row(name, differs=CUT_SHORT, text=True, **fields):
    body = {"model": MODEL, "max_output_tokens": 16, "temperature": 0, "input": QUESTION} | fields
    return Scenario(f"responses: {name}", PATH, body, differs=differs, text=text,
                    oracle="tools" if "tools" in fields else "chat")


ROWS = [
    row("a text"),
    row("messages", input=user(QUESTION)),
    row("typed parts", input=user([{"type": "input_text", "text": QUESTION}])),
    row("instructions", instructions="Answer in French."),
    row("an answer that ends by itself", WHOLE, input="Say only: yes", max_output_tokens=64),
    row("streamed", TEXT_STREAM, stream=True),
    row("a forced tool", WHOLE, input=[*turns(), *tools.QUESTION], **FORCED),
    row("a forced tool, streamed", TOOL_STREAM, input=[*turns(), *tools.QUESTION], stream=True, **FORCED),
    row("tool results", WHOLE, False, tools=[TOOL], input=list(turns())),
    row("a previous response", ERROR, False, previous_response_id="resp_0"),
    row("no input", ERROR, False, input=None),
    row("an unknown model", refused("llama-server answers with the model it has", 404), False, model="gpt-nonexistent"),
]
