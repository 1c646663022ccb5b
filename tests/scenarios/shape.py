"""An HTTP answer reduced to what two servers can be compared by, and the differences between two of them.

The shape of a JSON value: objects by key, lists by the union of their elements, everything else by its type, but for the
few fields whose value is part of the API (`LITERAL`). A stream's shape is the order of its phases (equal neighbours
collapsed) and the shape of each phase's chunks.
"""

import json
from collections import defaultdict

# Values that a client branches on.
LITERAL = {"object", "type", "role", "finish_reason", "stop_reason", "status", "model"}
# Token counts are the same where both sides have the same template.
COUNTS = {"prompt_tokens", "input_tokens"}
# Objects whose keys are data.
MAPS = {"top_logprobs"}


def shape(value, key=None):
    if key in LITERAL | COUNTS and (value is None or isinstance(value, (str, int))):
        return f"={json.dumps(value)}"
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:  # Anthropic's input_tokens are those that no cache held
            value = value | {"input_tokens": value["input_tokens"] + (value["cache_read_input_tokens"] or 0)}
        if key in MAPS:
            return {"*": union([shape(item) for item in value.values()])}
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [union([shape(item, key) for item in value])]
    names = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
    return names[type(value)]


def union(shapes):
    """One shape for all: keys that not all of them have end in `?`, types are joined by `|`."""
    shapes = [entry for entry in shapes if entry is not None]
    if not shapes:
        return None
    if all(isinstance(entry, dict) for entry in shapes):
        bare = [{name.rstrip("?"): (item, name.endswith("?")) for name, item in entry.items()} for entry in shapes]
        out = {}
        for name in dict.fromkeys(name for entry in bare for name in entry):
            found = [entry[name] for entry in bare if name in entry]
            optional = len(found) < len(bare) or any(flag for _, flag in found)
            out[name + "?" * optional] = union([item for item, _ in found])
        return out
    if all(isinstance(entry, list) for entry in shapes):
        return [union([entry[0] for entry in shapes])]
    parts = {part for entry in shapes for part in (entry.split("|") if isinstance(entry, str) else [type(entry).__name__])}
    return "|".join(sorted(parts))


def phase(name, data):
    """What a chunk of a stream is for."""
    if name:
        return name
    if not isinstance(data, dict):
        return "done"
    if "error" in data:
        return "error"
    choices = data.get("choices")
    if not choices:
        return "usage"
    delta = choices[0].get("delta", {})
    if choices[0].get("finish_reason"):
        return "finish"
    if "role" in delta:
        return "role"
    if calls := delta.get("tool_calls"):
        return "call" if calls[0].get("id") else "arguments"
    return "text"


def events(body):
    """(event name, parsed data) of each event; comments are skipped."""
    name = None
    for line in body.decode().splitlines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data = line[5:].strip()
            yield name, (data if data == "[DONE]" else json.loads(data))
        elif not line:
            name = None


def stream_shape(body):
    """The order is that of each choice by itself: how choices interleave is chance."""
    orders, found = defaultdict(list), defaultdict(list)
    for name, data in events(body):
        here = phase(name, data)
        found[here].append(shape(data))
        choices = data.get("choices") if isinstance(data, dict) else None
        for order in [orders[choices[0]["index"]]] if choices else orders.values() if orders else [orders[0]]:
            if order[-1:] != [here]:
                order.append(here)
    first, *others = orders.values()
    return {"order": first if all(order == first for order in others) else list(orders.values())} | {
        here: union(shapes) for here, shapes in found.items()
    }


def without_counts(entry):
    """A shape in which token counts are any numbers."""
    if isinstance(entry, dict):
        return {name: "number" if name in COUNTS else without_counts(item) for name, item in entry.items()}
    return [without_counts(item) for item in entry] if isinstance(entry, list) else entry


def reduced(status, headers, body, keep_text=False, keep_counts=True):
    """The comparable part of an answer, as it is recorded."""
    kind = headers.get("content-type", "").partition(";")[0].strip()
    out = {"status": status, "type": kind}
    if kind == "text/event-stream":
        out["shape"] = stream_shape(body)
        values = [data for _, data in events(body)]
    elif kind == "application/json":
        values = [json.loads(body)]
        out["shape"] = shape(values[0])
    else:
        values = []
    if not keep_counts and "shape" in out:
        out["shape"] = without_counts(out["shape"])
    if keep_text:
        out["text"] = "".join(map(text_of, values))
        if tokens := [pair for value in values for pair in logprobs_of(value)]:
            out["logprobs"] = tokens
    return out


def text_of(value):
    """All generated text in a body or a chunk, whichever API it is of."""
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("content"), list):
        return "".join(part.get("text", "") for part in value["content"])
    if "output" in value:
        return "".join(text_of(item) for item in value["output"])
    delta = value.get("delta")
    if value.get("type") == "response.output_text.delta":
        return delta
    if isinstance(delta, dict) and "text" in delta:
        return delta["text"]
    parts = []
    for choice in value.get("choices", []):
        message = choice.get("message") or choice.get("delta") or {}
        parts.append(choice.get("text") or message.get("content") or "")
        for call in message.get("tool_calls") or []:
            parts += [call["function"].get("name", ""), call["function"].get("arguments", "")]
    return "".join(parts)


def logprobs_of(value):
    """(token, logprob) of an answer's tokens, in either of OpenAI's two shapes."""
    for choice in value.get("choices", []) if isinstance(value, dict) else []:
        found = choice.get("logprobs") or {}
        yield from ([token["token"], round(token["logprob"], 3)] for token in found.get("content") or [])
        pairs = zip(found.get("tokens") or [], found.get("token_logprobs") or [])
        yield from ([token, round(value, 3)] for token, value in pairs)


# Both sides sum in float32; the oracle's logprobs differ from ours in the fourth digit.
LOGPROB_TOLERANCE = 0.02


def differences(ours, theirs):
    """One line per difference: `+path` only ours has, `-path` only the oracle has, `path: ours != theirs`."""
    lines = []
    for part in ("status", "type", "text"):
        if ours.get(part) != theirs.get(part):
            lines.append(f"{part}: {ours.get(part)!r} != {theirs.get(part)!r}")
    if (ours["status"] < 400) != (theirs["status"] < 400):
        return lines[:1]  # an answer and an error have nothing else in common
    compare("", ours.get("shape"), theirs.get("shape"), lines)
    compare_logprobs(ours.get("logprobs", []), theirs.get("logprobs", []), lines)
    return lines


def is_error(answer, anthropic):
    """Whether an answer is the error object of OpenAI or of Anthropic."""
    shape = answer.get("shape") or {}
    fields = shape.get("error")
    if not isinstance(fields, dict) or fields.get("message") != "string":
        return False
    if anthropic:
        return shape.get("type") == '="error"' and fields.keys() == {"type", "message"}
    typed = fields["code"] == "string" and fields["param"] in ("string", "null")
    return shape.keys() == {"error"} and fields.keys() == {"message", "type", "param", "code"} and typed


def compare(path, ours, theirs, lines):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            here = f"{path}.{name}".lstrip(".")
            if name not in theirs:
                lines.append(f"+{here}")
            elif name not in ours:
                lines.append(f"-{here}")
            else:
                compare(here, ours[name], theirs[name], lines)
    elif isinstance(ours, list) and isinstance(theirs, list) and path != "order":
        compare(f"{path}[]", ours[0], theirs[0], lines)
    elif ours != theirs:
        lines.append(f"{path}: {brief(ours)} != {brief(theirs)}")


def brief(entry):
    if isinstance(entry, list):
        return "[" + " ".join(map(str, entry)) + "]" if all(isinstance(item, str) for item in entry) else "list"
    return "object" if isinstance(entry, dict) else str(entry)


def compare_logprobs(ours, theirs, lines):
    if [token for token, _ in ours] != [token for token, _ in theirs]:
        lines.append("logprobs: other tokens")
    elif any(abs(a - b) > LOGPROB_TOLERANCE for (_, a), (_, b) in zip(ours, theirs)):
        lines.append("logprobs: other values")
