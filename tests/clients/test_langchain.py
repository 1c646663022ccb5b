"""`langchain-openai` works unchanged. Its embeddings: e2e/test_embeddings."""

import json

import openai as package
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

from conversations import CALLED, QUESTION, TOOL, is_a_good_call
from grid import MODEL


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


@pytest.fixture
def options(gateway):
    return {"model": MODEL, "base_url": f"{gateway.url}/v1", "api_key": "unused", "temperature": 0, "max_retries": 0, "timeout": 60}


@pytest.fixture
def chat(options):
    return ChatOpenAI(**options, max_tokens=128)


def test_an_answer_and_its_stream(chat):
    turns = [("system", "You are terse."), ("human", "What is the capital of France?")]
    whole = chat.invoke(turns)
    assert whole.content and whole.response_metadata["finish_reason"] in ("stop", "length")
    assert whole.usage_metadata["output_tokens"] > 0
    chunks = list(chat.stream(turns))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert len(chunks) > 2


def test_a_batch(chat):
    answers = chat.batch(["Say one.", "Say two.", "Say three."])
    assert len(answers) == 3 and all(answer.content for answer in answers)


@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_forced_tool_is_called(chat, choice):
    answer = chat.bind_tools([TOOL], tool_choice=choice, parallel_tool_calls=False).invoke(QUESTION)
    (call,) = answer.tool_calls
    assert is_a_good_call(call["name"], call["args"]) and not answer.invalid_tool_calls


def test_streamed_calls_add_up_to_the_whole_ones(options):
    """A model so small calls again and again."""
    chat = ChatOpenAI(**options, max_tokens=700).bind_tools([TOOL], tool_choice="required")
    first, *others = chat.stream(QUESTION)
    assert len(others) > 10, "arguments stream piece by piece"
    said = [(call["name"], call["args"]) for call in sum(others, first).tool_calls]
    assert len(said) > 1 and all(is_a_good_call(*call) for call in said)
    assert said == [(call["name"], call["args"]) for call in chat.invoke(QUESTION).tool_calls]


def test_a_call_by_itself_and_an_answer_to_its_result(chat):
    turns = []
    for number, (city, days) in enumerate(CALLED):
        call = {"id": f"call_{number}", "name": "get_weather", "args": {"city": city, "days": days}}
        turns += [HumanMessage(f"What is the weather in {city} for {days} days?"), AIMessage("", tool_calls=[call]),
                  ToolMessage("sunny", tool_call_id=call["id"])]
    turns.append(HumanMessage(QUESTION))
    answer = chat.bind_tools([TOOL]).invoke(turns)
    (call,) = answer.tool_calls
    assert is_a_good_call(call["name"], call["args"])
    turns += [answer, ToolMessage(json.dumps({"sky": "rain"}), tool_call_id=call["id"])]
    final = chat.bind_tools([TOOL], tool_choice="none").invoke(turns)
    assert final.content and not final.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_the_pydantic_model(chat, method):
    animal = chat.with_structured_output(Animal, method=method).invoke("Make up an animal.")
    assert isinstance(animal, Animal) and 0 <= animal.legs <= 8


def test_completions(options):
    assert OpenAI(**options, max_tokens=4).invoke("The sea is")


def test_errors_are_the_openai_package_s(options):
    with pytest.raises(package.NotFoundError):
        ChatOpenAI(**options | {"model": "gpt-nonexistent"}).invoke("Hello")
    with pytest.raises(package.BadRequestError):
        ChatOpenAI(**options | {"temperature": 9}).invoke("Hello")
    with pytest.raises(package.BadRequestError, match="context length"):
        ChatOpenAI(**options).invoke("word " * 9000)


def test_a_timeout_ends_the_answer_at_the_worker(options, slow_node, idle):
    slow = options | {"base_url": f"{slow_node.url}/v1", "timeout": 1}
    with pytest.raises(package.APITimeoutError):
        ChatOpenAI(**slow, max_tokens=4000, extra_body={"ignore_eos": True}).invoke("Hello")
    idle(slow_node)


def test_hanging_up_ends_the_answer_at_the_worker(options, slow_node, idle):
    slow = options | {"base_url": f"{slow_node.url}/v1"}
    stream = ChatOpenAI(**slow, max_tokens=4000, extra_body={"ignore_eos": True}).stream("Hello")
    for _ in zip(range(5), stream):
        pass
    assert slow_node.status()["sessions_running"] == 1
    stream.close()
    idle(slow_node)
