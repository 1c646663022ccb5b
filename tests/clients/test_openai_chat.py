"""The official `openai` package works unchanged against a gateway whose node serves nothing itself: chat, completions."""

import math

import openai as package
import pytest

import client
import grid
from grid import MODEL

STORY = [{"role": "user", "content": "Tell me a short story about a lighthouse."}]
SEEDED = {"model": MODEL, "messages": STORY, "temperature": 0.8, "seed": 7, "max_tokens": 24}


def test_models_are_listed_and_found(openai):
    assert MODEL in [model.id for model in openai.models.list()]
    assert openai.models.retrieve(MODEL).object == "model"


def test_chat_answers_from_another_node(openai, shared_grid, gateway):
    raw = openai.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        temperature=0,
        max_tokens=40,
    )
    answer = raw.parse()
    workers = {node.peer_id for node in shared_grid.nodes[1:]}
    assert raw.headers["x-opengrid-worker"] in workers
    assert raw.headers["x-opengrid-session"]
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert gateway.status()["models"] == []


def test_streaming_equals_the_whole_answer_and_ends_with_usage(openai):
    whole = openai.chat.completions.create(**SEEDED)
    chunks = list(openai.chat.completions.create(**SEEDED, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert len(chunks) > 10, "tokens stream one by one, not in one piece at the end"


def test_no_usage_chunk_without_being_asked(openai):
    chunks = list(openai.chat.completions.create(**SEEDED, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_stop_strings_end_the_answer_before_them(openai):
    whole = openai.chat.completions.create(**SEEDED).choices[0].message.content
    stop = whole[len(whole) // 2 :][:6]
    assert len(stop) == 6
    stopped = openai.chat.completions.create(**SEEDED, stop=[stop, "never said"])
    assert stopped.choices[0].message.content == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    streamed = openai.chat.completions.create(**SEEDED, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole[: whole.index(stop)]


def test_logprobs_of_chat(openai):
    answer = openai.chat.completions.create(**SEEDED, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert [top.logprob for top in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-5
    plain = openai.chat.completions.create(**SEEDED)
    assert plain.choices[0].logprobs is None
    assert plain.choices[0].message.content == answer.choices[0].message.content, "asking for logprobs changes nothing"


def test_logprobs_of_completions(openai):
    answer = openai.completions.create(model=MODEL, prompt="The sea is", temperature=0, max_tokens=5, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert math.isclose(max(top.values()), value, abs_tol=1e-6), f"greedy picks the best: {token}"


def test_a_seed_gives_the_same_text_and_another_seed_another(openai):
    say = lambda seed: openai.chat.completions.create(**SEEDED | {"seed": seed}).choices[0].message.content  # noqa: E731
    assert say(1) == say(1)
    assert len({say(seed) for seed in (1, 2, 3, 4)}) >= 3


def test_n_answers_differ_and_the_first_is_that_of_one(openai):
    answers = openai.chat.completions.create(**SEEDED, n=3)
    texts = [choice.message.content for choice in sorted(answers.choices, key=lambda choice: choice.index)]
    assert [choice.index for choice in answers.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == openai.chat.completions.create(**SEEDED).choices[0].message.content
    assert answers.usage.completion_tokens == 3 * 24


def test_ignore_eos_fills_the_budget(openai):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say only: yes"}], "temperature": 0, "max_tokens": 60}
    assert openai.chat.completions.create(**body).usage.completion_tokens < 60
    forced = openai.chat.completions.create(**body, extra_body={"ignore_eos": True})
    assert forced.usage.completion_tokens == 60
    assert forced.choices[0].finish_reason == "length"


def test_a_conversation_reuses_what_was_computed(openai):
    turns = [{"role": "user", "content": "Remember the word nightingale. " * 12}]
    first = openai.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=16)
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "Go on."}]
    second = openai.chat.completions.create(model=MODEL, messages=turns, temperature=0, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens // 2


def test_a_bias_forces_a_token_and_forbids_it(openai):
    def tokens(**options):
        answer = openai.chat.completions.create(**SEEDED | {"temperature": 0, "max_tokens": 4}, logprobs=True, **options)
        return [token.token for token in answer.choices[0].logprobs.content]

    forced = tokens(logit_bias={"4052": 100})
    assert len(forced) == 4 and len(set(forced)) == 1
    assert forced[0] not in tokens() and forced[0] not in tokens(logit_bias={"4052": -100})


def test_a_developer_is_a_system_and_one_part_is_a_text(openai):
    def say(role, content):
        turns = [{"role": role, "content": "Answer in French."}, {"role": "user", "content": content}]
        return openai.chat.completions.create(**SEEDED | {"messages": turns}).choices[0].message.content

    text = "What is the capital of France?"
    assert say("developer", text) == say("system", [{"type": "text", "text": text}]) != say("user", text)


@pytest.mark.parametrize("tier", ["default", "priority", "flex"])
def test_the_service_tier_is_said(openai, tier):
    assert openai.chat.completions.create(**SEEDED, service_tier=tier).service_tier == tier


def test_requests_of_one_cache_key_meet_at_one_worker(openai):
    """Their prompts have nothing in common by which they would."""

    def worker(number):
        ask = [{"role": "system", "content": f"{number} is your number."}, {"role": "user", "content": "Hello"}]
        body = {"model": MODEL, "messages": ask, "max_tokens": 1}
        raw = openai.chat.completions.with_raw_response.create(**body, prompt_cache_key="a conversation of mine")
        return raw.headers["x-opengrid-worker"]

    assert len({worker(number) for number in range(8)}) == 1


def test_a_prompt_over_the_context_names_both_numbers(openai, gateway):
    limit = min(model["context_tokens"] for model in models_of(gateway))
    with pytest.raises(package.BadRequestError) as caught:
        openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * (limit + 50)}])
    assert caught.value.code == "context_length_exceeded"
    numbers = [int(word) for word in caught.value.message.replace(",", "").split() if word.isdigit()]
    assert limit in numbers and any(number > limit for number in numbers), caught.value.message


def models_of(node):
    rows = grid.rows_of(client.get_json(node.url, "/grid/v1/models"), "models")
    return [row for row in rows if row["id"] == MODEL]
