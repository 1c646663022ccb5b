"""Bodies that a client should not send, made of bodies that it may: seeded, so that a failure can be seen again."""

import copy
import json

NUMBERS = [0, 1, -1, 3, 0.5, -0.0, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40, 1e308, 5e-324]
TEXTS = [
    "", " ", "user", "tool", "auto", "required", "json_object", "base64", "text", "\u0000", "a\u0301", "‮", "🗼" * 50,
    "<|im_end|>", "<|im_start|>system\n", "{{ messages }}", "{% for x in y %}", "\ud800", "x" * 5000, "../../etc/passwd",
]
VALUES = [None, True, False, [], {}, [[]], [None], {"": None}, {"type": "text"}, {"type": "function"}, *NUMBERS, *TEXTS]
FIELDS = [
    "n", "stream", "stop", "logprobs", "top_logprobs", "logit_bias", "temperature", "top_p", "seed", "tools", "tool_choice",
    "response_format", "functions", "stream_options", "echo", "suffix", "best_of", "service_tier", "prompt_cache_key",
    "parallel_tool_calls", "modalities", "metadata", "user", "dimensions", "encoding_format", "input", "instructions",
    "system", "stop_sequences", "thinking", "reasoning", "previous_response_id", "store", "text", "truncation",
]
NESTING = ["[" * 100_000, '{"a":' * 100_000, '{"messages":' + "[" * 5_000 + "]" * 5_000 + "}"]


def places(value, found=None):
    """Every (container, key) of a JSON value. The model's name is left alone: behind an unknown one nothing is reached."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if key != "model":
            found.append((value, key))
        places(item, found)
    return found


def replace(rng, body):
    container, key = rng.choice(places(body))
    container[key] = copy.deepcopy(rng.choice(VALUES))


def vary(rng, body):
    """Another value of the same type, so that what lies behind the types is reached."""
    container, key = rng.choice(places(body))
    value = container[key]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, (int, float)):
        container[key] = rng.choice([*NUMBERS, value + 1, value * 2, value / 3, rng.randrange(100), rng.random()])
    elif isinstance(value, str):
        container[key] = rng.choice([*TEXTS, value + rng.choice(TEXTS), value * 3, value[: len(value) // 2]])


def remove(rng, body):
    container, key = rng.choice(places(body))
    del container[key]


def add(rng, body):
    body[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(VALUES))


def repeat(rng, body):
    """One entry of a list many times, or a list around a value."""
    container, key = rng.choice(places(body))
    value = container[key]
    container[key] = value * rng.choice([2, 300]) if isinstance(value, list) else [value, value]


def wrap(rng, body):
    container, key = rng.choice(places(body))
    for _ in range(rng.choice([1, 3, 200])):
        container[key] = rng.choice([{"type": container[key]}, [container[key]]])


def swap(rng, body):
    """The values of two places."""
    (one, a), (other, b) = rng.choice(places(body)), rng.choice(places(body))
    first, second = copy.deepcopy(one[a]), copy.deepcopy(other[b])
    one[a] = second
    if b in other if isinstance(other, dict) else b < len(other):
        other[b] = first


EDITS = [vary, vary, vary, replace, replace, remove, add, repeat, wrap, swap]


def broken(rng, text):
    """Bytes that are no longer that JSON."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        for _ in range(rng.choice([1, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 2:
        return rng.randbytes(rng.choice([1, 50, 20_000]))
    if kind == 3:
        return rng.choice(NESTING).encode()
    if kind == 4:
        return text.replace("{", '{"model":7,"model":"x",', 1).encode("utf-8", "surrogatepass")
    if kind == 5:
        return text.replace(":", rng.choice([":NaN,", ":1e400,", ":-", "::", ":0x1"]), 1).encode("utf-8", "surrogatepass")
    return b"\xef\xbb\xbf" + bytes(data) + rng.choice([b"", b"}", b"{}", b"\x00"])


def mutated(rng, body):
    """The bytes to send."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if places(body):
            rng.choice(EDITS)(rng, body)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    return broken(rng, text) if rng.random() < 0.15 else text.encode("utf-8", "surrogatepass")
