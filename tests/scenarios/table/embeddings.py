"""`/v1/embeddings`."""

from grid import EMBEDDING_MODEL
from scenario import Scenario
from table.reasons import ERROR, client_fault, refused

PATH = "/v1/embeddings"


def row(name, input="The sea is wide.", differs=None, **fields):
    body = {"model": EMBEDDING_MODEL, "input": input} | fields
    return Scenario(f"embeddings: {name}", PATH, body, differs=differs or {}, oracle="embedding")


ROWS = [
    row("a text"),
    row("a list of texts", ["The sea is wide.", "The moon is far."]),
    row("floats", encoding_format="float"),
    row("base64", differs={"-data[].encoding_format": "llama-server's own"}, encoding_format="base64"),
    row("token ids", [1996, 2712, 2003]),
    row("lists of token ids", [[1996, 2712, 2003], [1996, 4231]]),
    row("an empty text", "", refused("OpenAI refuses it as well")),
    row("no texts", [], ERROR),
    row("an input of another type", {"a": 1}, client_fault(400, 500)),
    row("no input", None, client_fault(400, 500)),
    row("an unknown format", differs=ERROR, encoding_format="hex"),
    row("an unknown model", differs=refused("llama-server answers with the model it has", 404), model="text-embedding-nonexistent"),
    row("a text over the context", "word " * 600, client_fault(400, 500)),
]
