"""/v1/embeddings from a real model on other nodes of the grid, through the official client, against a reference."""

import base64
import concurrent.futures
import json
import pathlib

import numpy as np
import openai as package
import pytest

import client
import minilm
from grid import EMBEDDING_MODEL, MODEL, Grid, shared_store

SENTENCES = (pathlib.Path(__file__).parent / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
COSINE_MIN = 0.999
WIDTH, CONTEXT = 384, 512


@pytest.fixture(scope="module")
def embedding_grid():
    """A gateway without a model, two workers of the embedding model, one of the default model."""
    shared_store(EMBEDDING_MODEL)
    with Grid() as grid:
        gateway = grid.add("gateway")
        for name in ("worker-1", "worker-2"):
            grid.add(name, serve=EMBEDDING_MODEL, join=gateway)
        grid.add("talker", serve=MODEL, join=gateway)
        grid.wait_for_workers(2, model=EMBEDDING_MODEL)
        yield grid.wait_for_workers(1)


@pytest.fixture
def openai(embedding_grid):
    url = f"{embedding_grid.nodes[0].url}/v1"
    return package.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=120)


def embed(openai, texts, **options):
    answer = openai.embeddings.create(model=EMBEDDING_MODEL, input=texts, **options)
    assert [row.index for row in answer.data] == list(range(len(answer.data)))
    return np.array([row.embedding for row in answer.data])


def post(grid, body):
    return client.request(grid.nodes[0].url, "POST", "/v1/embeddings", body={"model": EMBEDDING_MODEL} | body)


def test_fifty_sentences_are_what_the_reference_makes_of_them(openai):
    assert len(SENTENCES) == 50
    bert = minilm.Bert()
    expected = np.array([bert.embed(sentence) for sentence in SENTENCES])
    found = embed(openai, SENTENCES)
    assert found.shape == (50, WIDTH)
    cosines = (expected * found).sum(axis=1) / np.linalg.norm(found, axis=1)
    print(f"cosine: least {cosines.min():.8f}, mean {cosines.mean():.8f}")
    assert cosines.min() >= COSINE_MIN, SENTENCES[int(cosines.argmin())]
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)


def test_every_sentence_has_the_reference_s_tokens(openai):
    bert = minilm.Bert()
    for sentence in SENTENCES:
        tokens = bert.tokens(sentence)
        answer = openai.embeddings.create(model=EMBEDDING_MODEL, input=sentence)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(tokens), sentence
        # The same tokens, given as such.
        same = embed(openai, tokens)
        assert np.dot(same[0], answer.data[0].embedding) > 0.99999, sentence


def test_float_and_base64_are_the_same_numbers(openai, embedding_grid):
    texts = SENTENCES[:3]
    # The client asks for base64 by itself and decodes it.
    decoded = embed(openai, texts)
    floats = embed(openai, texts, encoding_format="float")
    assert np.allclose(decoded, floats, atol=1e-6)
    status, headers, body = post(embedding_grid, {"input": texts, "encoding_format": "base64"})
    assert status == 200
    raw = json.loads(body)["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(raw), "<f4"), floats[0], atol=1e-6)
    assert headers["x-request-id"].startswith("req_")


def test_workers_other_than_the_gateway_share_a_long_list(openai, embedding_grid):
    texts = [f"{SENTENCES[at % 40]} ({at})" for at in range(400)]
    raw = openai.embeddings.with_raw_response.create(model=EMBEDDING_MODEL, input=texts)
    vectors = np.array([row.embedding for row in raw.parse().data])
    workers = set(raw.headers["x-opengrid-worker"].split(", "))
    gateway, *others = embedding_grid.nodes
    assert workers == {node.peer_id for node in others[:2]} and gateway.peer_id not in workers
    for at in (0, 33, 199, 399):
        assert np.dot(vectors[at], embed(openai, texts[at])[0]) > 0.9999


def test_meaning_is_near(openai):
    question, answer, other = embed(openai, ["How do I cook rice?", "Boil it in twice as much water.", "He won the race."])
    assert question @ answer > question @ other + 0.2


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": "word " * CONTEXT}, 400, "context_length_exceeded", "input[0]"),
        ({"input": ["fine", "word " * 100_000]}, 400, "context_length_exceeded", "input[1]"),
        ({"input": ""}, 400, "invalid_value", "input[0]"),
        ({"input": [[30_522]]}, 400, "invalid_value", "input[0]"),
        ({"input": "a", "dimensions": 256}, 400, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, 400, "invalid_value", "encoding_format"),
        ({"input": "a", "model": MODEL}, 400, "unsupported_value", "model"),
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "model_not_found", "model"),
    ],
)
def test_what_cannot_be_embedded_is_told_in_openai_s_shape(embedding_grid, body, status, code, param):
    found, _, text = post(embedding_grid, body)
    error = json.loads(text)["error"]
    assert (found, error["code"], error["param"]) == (status, code, param), error
    assert error["type"] == "invalid_request_error" and error["message"]


def test_the_longest_text_fits_and_dimensions_may_be_said(openai):
    whole = embed(openai, "word " * (CONTEXT - 2), dimensions=WIDTH)
    assert whole.shape == (1, WIDTH)


def test_an_embedding_model_does_not_talk(openai):
    with pytest.raises(package.BadRequestError, match="/v1/embeddings"):
        openai.chat.completions.create(model=EMBEDDING_MODEL, messages=[{"role": "user", "content": "hi"}])
    tasks = {model.id: model.task for model in openai.models.list()}
    assert tasks == {EMBEDDING_MODEL: "embedding", MODEL: "generation"}


def test_langchain_embeds_documents_and_queries(embedding_grid, openai):
    from langchain_openai import OpenAIEmbeddings

    # Else it would send the token ids of OpenAI's own models.
    options = {"api_key": "unused", "check_embedding_ctx_length": False}
    chain = OpenAIEmbeddings(model=EMBEDDING_MODEL, base_url=f"{embedding_grid.nodes[0].url}/v1", **options)
    assert np.allclose(chain.embed_documents(SENTENCES[:3]), embed(openai, SENTENCES[:3]), atol=1e-3)
    assert np.allclose(chain.embed_query(SENTENCES[4]), embed(openai, SENTENCES[4])[0], atol=1e-3)


def test_killed_workers_cost_no_request(openai, embedding_grid):
    """The last test of the module: it kills one of the workers amid requests."""
    texts = [f"{sentence} {at}" for at in range(8) for sentence in SENTENCES[:40]]
    expected = embed(openai, texts[:40])
    victim = embedding_grid.nodes[1]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        requests = [pool.submit(embed, openai, texts) for _ in range(8)]
        concurrent.futures.wait(requests, return_when=concurrent.futures.FIRST_COMPLETED)
        victim.kill()
        requests += [pool.submit(embed, openai, texts) for _ in range(4)]
        for request in requests:
            vectors = request.result()
            assert (vectors[:40] * expected).sum(axis=1).min() > 0.9999
