"""The official `openai` package's Responses work unchanged; nothing is stored."""

import json

import openai as package
import pytest
from pydantic import BaseModel, Field

from conversations import CALLED, PARAMETERS, QUESTION, is_a_good_call
from grid import MODEL

TOOL = {"type": "function", "name": "get_weather", "description": "The weather of a city", "parameters": PARAMETERS,
        "strict": True}
ASKED = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 700, "tools": [TOOL]}

PARIS = {"model": MODEL, "input": "What is the capital of France? Answer in one sentence.", "temperature": 0}
STORY = {
    "model": MODEL,
    "input": "Tell me a short story about a lighthouse.",
    "temperature": 0.8,
    "max_output_tokens": 24,
    "extra_body": {"seed": 7},
}


class City(BaseModel):
    name: str = Field(max_length=12)
    people: int = Field(ge=1, le=9)


def calls_of(response):
    return [item for item in response.output if item.type == "function_call"]


def test_a_response_from_another_node(openai, shared_grid):
    raw = openai.responses.with_raw_response.create(**PARIS, max_output_tokens=40, metadata={"a": "b"})
    response = raw.parse()
    assert raw.headers["x-opengrid-worker"] in {node.peer_id for node in shared_grid.nodes[1:]}
    assert "Paris" in response.output_text
    assert response.id.startswith("resp_") and response.status == "completed" and response.error is None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.metadata == {"a": "b"} and response.store is False
    counted = openai.responses.input_tokens.count(model=MODEL, input=PARIS["input"])
    assert counted.input_tokens == response.usage.input_tokens


def test_a_response_says_what_a_chat_says(openai):
    chat = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": STORY["input"]}],
        temperature=0.8,
        seed=7,
        max_tokens=24,
    )
    response = openai.responses.create(**STORY, instructions="Be brief.")
    assert response.output_text == chat.choices[0].message.content
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 24


def test_a_conversation_goes_on_with_the_items_of_the_answer(openai):
    first = openai.responses.create(**PARIS, max_output_tokens=40)
    question = {"role": "user", "content": PARIS["input"]}
    again = [question, *(item.to_dict() for item in first.output), {"role": "user", "content": "Say it again."}]
    second = openai.responses.create(model=MODEL, input=again, temperature=0, max_output_tokens=40)
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.output_text


def test_events_add_up_to_the_response(openai):
    whole = openai.responses.create(**STORY)
    events = list(openai.responses.create(**STORY, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[-1].type == "response.incomplete"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert len(deltas) > 10, "tokens stream one by one, not in one piece at the end"


def test_the_package_s_own_accumulator_agrees(openai):
    with openai.responses.stream(**PARIS, max_output_tokens=40) as stream:
        done = [event for event in stream if event.type == "response.output_text.done"]
        final = stream.get_final_response()
    assert done[0].text == final.output_text
    assert "Paris" in final.output_text and final.usage.output_tokens > 0


def test_logprobs_are_included_when_asked_for(openai):
    response = openai.responses.create(**STORY, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = response.output[0].content[0].logprobs
    assert len(logprobs) == 24 and all(len(token.top_logprobs) == 2 for token in logprobs)
    assert b"".join(bytes(token.bytes) for token in logprobs).decode() == response.output_text


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_response_id", "resp_1"), ("background", True), ("tools", [{"type": "web_search"}])],
)
def test_what_needs_a_store_or_hosted_tools_is_refused(openai, field, value):
    with pytest.raises(package.BadRequestError) as caught:
        openai.responses.create(**PARIS, **{field: value})
    assert caught.value.code == "unsupported_value" and caught.value.param.startswith(field)


def test_a_stored_response_is_not_found(openai):
    with pytest.raises(package.NotFoundError, match="stores none"):
        openai.responses.retrieve("resp_1")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}], ids=["required", "named"])
def test_a_forced_tool_is_called_once(openai, choice):
    (call,) = calls_of(openai.responses.create(**ASKED, tool_choice=choice, parallel_tool_calls=False))
    assert is_a_good_call(call.name, json.loads(call.arguments))


def test_streamed_calls_are_gathered(openai):
    """A model so small calls again and again."""
    with openai.responses.stream(**ASKED, tool_choice="required") as stream:
        deltas = [event for event in stream if event.type == "response.function_call_arguments.delta"]
        calls = calls_of(stream.get_final_response())
    assert len(calls) > 1 and len({call.call_id for call in calls}) == len(calls)
    for call in calls:
        assert "".join(delta.delta for delta in deltas if delta.item_id == call.id) == call.arguments
        assert is_a_good_call(call.name, json.loads(call.arguments))


def test_a_call_by_itself_and_an_answer_to_its_result(openai):
    turns = []
    for number, (city, days) in enumerate(CALLED):
        arguments = json.dumps({"city": city, "days": days})
        turns += [{"role": "user", "content": f"What is the weather in {city} for {days} days?"},
                  {"type": "function_call", "call_id": f"c{number}", "name": "get_weather", "arguments": arguments},
                  {"type": "function_call_output", "call_id": f"c{number}", "output": "sunny"}]
    turns.append({"role": "user", "content": QUESTION})
    first = openai.responses.create(**ASKED | {"input": turns})
    call = calls_of(first)[0]
    assert is_a_good_call(call.name, json.loads(call.arguments))
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain, 9 degrees"}
    turns += [item.to_dict() for item in first.output] + [result]
    second = openai.responses.create(**ASKED | {"input": turns, "max_output_tokens": 40}, tool_choice="none")
    assert second.output_text and not calls_of(second)


def test_parse_returns_the_pydantic_model(openai):
    answer = openai.responses.parse(**PARIS, max_output_tokens=200, text_format=City)
    assert isinstance(answer.output_parsed, City) and answer.status == "completed"
