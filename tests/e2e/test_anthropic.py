"""The official `anthropic` package works unchanged."""

import anthropic as package
import pytest

from grid import MODEL

PARIS = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    "max_tokens": 40,
    # The package has no parameter for it any more.
    "extra_body": {"temperature": 0},
}
STORY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a short story about a lighthouse."}],
    "max_tokens": 24,
    "extra_body": {"temperature": 0.8, "seed": 7},
}


@pytest.fixture
def anthropic(gateway):
    return package.Anthropic(base_url=gateway.url, api_key="unused", max_retries=0, timeout=60)


def test_a_message_from_another_node(anthropic, shared_grid):
    raw = anthropic.messages.with_raw_response.create(**PARIS)
    message = raw.parse()
    assert raw.headers["x-opengrid-worker"] in {node.peer_id for node in shared_grid.nodes[1:]}
    assert raw.headers["request-id"] == message._request_id
    assert message.id.startswith("msg_") and message.role == "assistant" and message.model == MODEL
    assert [block.type for block in message.content] == ["text"]
    assert "Paris" in message.content[0].text
    assert message.stop_reason == "end_turn" and message.stop_sequence is None
    counted = anthropic.messages.count_tokens(model=MODEL, messages=PARIS["messages"])
    assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_a_message_says_what_a_chat_says(anthropic, openai):
    chat = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, *STORY["messages"]],
        temperature=0.8,
        seed=7,
        max_tokens=24,
    )
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    message = anthropic.messages.create(**STORY, system=system)
    assert message.content[0].text == chat.choices[0].message.content
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 24


def test_the_package_s_own_accumulator_agrees(anthropic):
    whole = anthropic.messages.create(**STORY)
    with anthropic.messages.stream(**STORY) as stream:
        deltas = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(deltas) == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 24)
    assert len(deltas) > 10, "tokens stream one by one, not in one piece at the end"


def test_raw_events_come_in_order(anthropic):
    events = [event.type for event in anthropic.messages.create(**PARIS, stream=True)]
    assert events[:2] == ["message_start", "content_block_start"]
    assert set(events[2:-3]) == {"content_block_delta"}
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_the_stop_sequence_is_told(anthropic):
    whole = anthropic.messages.create(**STORY).content[0].text
    stop = whole[len(whole) // 2 :][:6]
    assert stop.strip()
    stopped = anthropic.messages.create(**STORY, stop_sequences=["never said", stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert stopped.content[0].text == whole[: whole.index(stop)]


def test_errors_are_the_package_s_own(anthropic):
    with pytest.raises(package.NotFoundError) as caught:
        anthropic.messages.create(**PARIS | {"model": "nobody"})
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert caught.value.request_id == caught.value.body["request_id"]
    image = {"type": "image", "source": {"type": "url", "url": "http://localhost/x.png"}}
    with pytest.raises(package.BadRequestError, match=r"messages\.0\.content\.0\.type"):
        anthropic.messages.create(**PARIS | {"messages": [{"role": "user", "content": [image]}]})
    with pytest.raises(package.BadRequestError, match="max_tokens"):
        anthropic.messages.create(**PARIS | {"max_tokens": 0})
