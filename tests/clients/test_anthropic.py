"""The official `anthropic` package works unchanged."""

import time

import anthropic as package
import pytest

from conversations import CALLED, PARAMETERS, QUESTION, is_a_good_call
from grid import MODEL

TOOL = {"name": "get_weather", "description": "The weather of a city", "input_schema": PARAMETERS}

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


ENDLESS = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4000,
           "extra_body": {"ignore_eos": True}}


def connect(node, **options):
    return package.Anthropic(**{"base_url": node.url, "api_key": "unused", "max_retries": 0, "timeout": 60} | options)


@pytest.fixture
def anthropic(gateway):
    return connect(gateway)


def asked(**options):
    question = [{"role": "user", "content": QUESTION}]
    return {"model": MODEL, "messages": question, "max_tokens": 700, "tools": [TOOL], "extra_body": {"temperature": 0}} | options


def calls_of(message):
    return [part for part in message.content if part.type == "tool_use"]


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


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "tool"])
def test_a_forced_tool_is_called_once(anthropic, choice):
    message = anthropic.messages.create(**asked(tool_choice=choice | {"disable_parallel_tool_use": True}))
    (call,) = calls_of(message)
    assert is_a_good_call(call.name, call.input)
    assert message.stop_reason == "tool_use"


def test_streamed_calls_are_gathered(anthropic):
    """A model so small calls again and again."""
    body = asked(tool_choice={"type": "any"})
    with anthropic.messages.stream(**body) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        calls = calls_of(stream.get_final_message())
    assert len(calls) > 1 and len({call.id for call in calls}) == len(calls)
    assert all(is_a_good_call(call.name, call.input) for call in calls)
    assert len(pieces) > 3 * len(calls), "arguments stream piece by piece"
    assert [call.input for call in calls] == [call.input for call in calls_of(anthropic.messages.create(**body))]


def test_a_call_by_itself_and_an_answer_to_its_result(anthropic):
    turns = []
    for number, (city, days) in enumerate(CALLED):
        use = {"type": "tool_use", "id": f"t{number}", "name": "get_weather", "input": {"city": city, "days": days}}
        result = {"type": "tool_result", "tool_use_id": f"t{number}", "content": "sunny"}
        turns += [{"role": "user", "content": f"What is the weather in {city} for {days} days?"},
                  {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]},
                  {"role": "assistant", "content": "Sunny."}]
    turns.append({"role": "user", "content": QUESTION})
    first = anthropic.messages.create(**asked(messages=turns))
    assert first.stop_reason == "tool_use"
    call = calls_of(first)[0]
    assert is_a_good_call(call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain, 9 degrees"}]}
    turns += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = anthropic.messages.create(**asked(messages=turns, tool_choice={"type": "none"}, max_tokens=40))
    assert [part.type for part in second.content] == ["text"] and second.content[0].text


def test_keys_and_their_limits_are_the_package_s_errors(closed_node, new_key):
    hello = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    with pytest.raises(package.AuthenticationError) as caught:
        connect(closed_node).messages.create(**hello)
    assert caught.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(package.PermissionDeniedError):
        connect(closed_node, api_key=new_key("--scope", "read")).messages.create(**hello)
    small = connect(closed_node, api_key=new_key("--tokens-per-minute", "500"), max_retries=3)
    assert small.messages.create(**hello).usage.output_tokens == 2
    with pytest.raises(package.RateLimitError) as caught:
        small.messages.create(**hello | {"max_tokens": 501})
    assert caught.value.body["error"]["type"] == "rate_limit_error"


def test_a_body_too_large_is_the_package_s_error(anthropic):
    with pytest.raises(package.APIStatusError) as caught:
        anthropic.messages.create(**asked(messages=[{"role": "user", "content": "x" * (9 << 20)}]))
    assert caught.value.status_code == 413 and caught.value.body["error"]["type"] == "request_too_large"


def test_the_client_retries_until_there_is_room(slow_node):
    running = connect(slow_node).messages.create(**ENDLESS, stream=True)
    next(iter(running))
    refused = []

    def hang_up_after_the_first_refusal(response):
        if response.status_code != 200:
            refused.append((response.status_code, int(response.headers["retry-after"])))
            running.close()

    http = package.DefaultHttpxClient(event_hooks={"response": [hang_up_after_the_first_refusal]})
    answer = connect(slow_node, max_retries=4, http_client=http).messages.create(**ENDLESS | {"max_tokens": 2})
    assert answer.usage.output_tokens == 2
    assert refused and refused[0][1] >= 1


def test_timeouts_and_hang_ups_end_the_answer_at_the_worker(slow_node, idle):
    started = time.monotonic()
    with pytest.raises(package.APITimeoutError):
        connect(slow_node, timeout=1).messages.create(**ENDLESS)
    assert time.monotonic() - started < 5
    idle(slow_node)
    with connect(slow_node).messages.create(**ENDLESS, stream=True) as stream:
        for _ in zip(range(5), stream):
            pass
        assert slow_node.status()["sessions_running"] == 1
    idle(slow_node)
