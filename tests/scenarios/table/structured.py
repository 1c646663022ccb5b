"""`response_format`."""

from scenario import Scenario, greedy, user
from table.reasons import CHAT, CHAT_STREAM, ERROR, refused

PATH = "/v1/chat/completions"
PERSON = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "age": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["colour", "age"],
    "additionalProperties": False,
}
OPENAI_TOO = refused("OpenAI refuses it as well")
ASK = user("Make up a person.")


def row(name, format, differs=CHAT, text=False, **fields):
    body = greedy(messages=ASK, response_format=format, **{"max_tokens": 64} | fields)
    return Scenario(f"format: {name}", PATH, body, differs=differs, text=text)


def schema(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema} | fields}


ROWS = [
    row("text", {"type": "text"}, text=True, max_tokens=16),
    row("json_object", {"type": "json_object"}),
    row("json_schema", schema(PERSON)),
    row("json_schema, strict", schema(PERSON, strict=True)),
    row("json_schema, streamed", schema(PERSON, strict=True), CHAT_STREAM, stream=True),
    row("json_schema, two answers", schema(PERSON, strict=True), n=2, temperature=1, seed=1),
    row("json_schema with $ref and anyOf", schema(
        {"$defs": {"a": {"const": 7}}, "type": "object", "properties": {"x": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}},
         "required": ["x"], "additionalProperties": False})),
    row("an unknown type", {"type": "yaml"}, ERROR),
    row("no type", {}, OPENAI_TOO),
    row("json_schema without a schema", {"type": "json_schema"}, OPENAI_TOO),
    row("a schema of an unknown type", schema({"type": "hologram"}), ERROR),
    row("a format of another type", "json_object", OPENAI_TOO),
]
