"""The official `openai` package's Responses work unchanged; nothing is stored."""

import openai as package
import pytest

from grid import MODEL

PARIS = {"model": MODEL, "input": "What is the capital of France? Answer in one sentence.", "temperature": 0}
STORY = {
    "model": MODEL,
    "input": "Tell me a short story about a lighthouse.",
    "temperature": 0.8,
    "max_output_tokens": 24,
    "extra_body": {"seed": 7},
}


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
