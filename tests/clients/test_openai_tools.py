"""The official `openai` package: tools and structured output."""

import json
from enum import Enum

import pytest
from pydantic import BaseModel, Field

from conversations import MESSAGES, QUESTION, TOOL, is_a_good_call
from grid import MODEL

ASK = [{"role": "user", "content": QUESTION}]
BODY = {"model": MODEL, "messages": ASK, "tools": [TOOL], "temperature": 0, "max_tokens": 128}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Pet(BaseModel):
    name: str = Field(max_length=12)
    colour: Colour


class Person(BaseModel):
    name: str = Field(min_length=2, max_length=12)
    age: int = Field(ge=18, le=99)
    pets: list[Pet] = Field(max_length=2)


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_tool_is_called(openai, choice):
    answer = openai.chat.completions.create(**BODY, tool_choice=choice, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")
    assert call.type == "function" and call.id
    assert is_a_good_call(call.function.name, json.loads(call.function.arguments))


def test_a_streamed_call_is_the_whole_one(openai):
    whole = openai.chat.completions.create(**BODY, tool_choice="required", parallel_tool_calls=False)
    (call,) = whole.choices[0].message.tool_calls
    chunks = list(openai.chat.completions.create(**BODY, tool_choice="required", parallel_tool_calls=False, stream=True))
    deltas = [delta for chunk in chunks for choice in chunk.choices for delta in choice.delta.tool_calls or []]
    assert deltas[0].id and deltas[0].type == "function" and deltas[0].function.name == "get_weather"
    assert all(delta.index == 0 for delta in deltas)
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments
    assert len(deltas) > 3, "arguments stream piece by piece"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_parallel_calls_are_the_same_whole_streamed_and_gathered(openai):
    ask = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    body = BODY | {"messages": ask, "max_tokens": 700, "tool_choice": "required"}
    whole = openai.chat.completions.create(**body).choices[0]
    calls = whole.message.tool_calls
    said = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
    assert whole.finish_reason == "tool_calls" and all(is_a_good_call(*call) for call in said)
    assert {arguments["city"] for _, arguments in said} == {"Paris", "Rome"}
    assert len({call.id for call in calls}) == len(calls)
    with openai.chat.completions.stream(**body) as stream:
        indices = [event.index for event in stream if event.type == "tool_calls.function.arguments.delta"]
        gathered = stream.get_final_completion().choices[0].message.tool_calls
    assert [(call.function.name, call.function.parsed_arguments) for call in gathered] == said
    assert sorted(indices) == indices and set(indices) == set(range(len(calls))), "one call after the other"


def test_a_model_calls_by_itself_and_answers_from_the_result(openai):
    body = BODY | {"messages": list(MESSAGES)}
    first = openai.chat.completions.create(**body).choices[0]
    assert first.finish_reason == "tool_calls"
    call = first.message.tool_calls[0]
    assert is_a_good_call(call.function.name, json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain, 9 degrees"}
    turns = [*MESSAGES, first.message.model_dump(exclude_none=True), result]
    second = openai.chat.completions.create(**BODY | {"messages": turns}, tool_choice="none").choices[0]
    assert second.message.tool_calls is None and second.message.content


def test_none_calls_nothing(openai):
    answer = openai.chat.completions.create(**BODY, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_parse_returns_the_pydantic_model(openai):
    ask = [{"role": "user", "content": "Make up a person with pets."}]
    for seed in (1, 2, 3):
        answer = openai.chat.completions.parse(
            model=MODEL, messages=ask, response_format=Person, temperature=1, seed=seed, max_tokens=600
        )
        person = answer.choices[0].message.parsed
        assert isinstance(person, Person) and answer.choices[0].finish_reason == "stop"
        assert 18 <= person.age <= 99 and len(person.pets) <= 2


def test_json_object_is_an_object(openai):
    ask = [{"role": "user", "content": "Describe a cat as JSON."}]
    answer = openai.chat.completions.create(
        model=MODEL, messages=ask, response_format={"type": "json_object"}, temperature=0, max_tokens=400
    )
    choice = answer.choices[0]
    assert choice.message.content.lstrip().startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
