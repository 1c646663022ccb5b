"""What cannot be answered."""

from grid import MODEL
from scenario import Scenario, greedy, user
from table.reasons import ERROR, client_fault, refused

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = user("Hello")
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
OPENAI_TOO = refused("OpenAI refuses it as well")
OVERFLOW = ERROR | {
    "-error.n_ctx": "our message has both numbers",
    "-error.n_prompt_tokens": "our message has both numbers",
    'error.type: ="invalid_request_error" != ="exceed_context_size_error"': "OpenAI's type; the code tells it apart",
}


def chat(name, differs=ERROR, **fields):
    return Scenario(f"error: {name}", CHAT, greedy(**{"messages": HELLO} | fields), differs=differs)


def text(name, differs=ERROR, **fields):
    return Scenario(f"error: {name}", TEXT, greedy(**{"prompt": "Hello"} | fields), differs=differs)


def raw(name, body, differs=ERROR, path=CHAT, method="POST", headers=None):
    return Scenario(f"error: {name}", path, body, method, headers or {}, differs)


ROWS = [
    raw("bad JSON", b'{"model": ', differs=client_fault(400, 500)),
    raw("an empty body", b"", differs=client_fault(400, 500)),
    raw("JSON that is no object", b"[1, 2]"),
    raw("bytes that are no UTF-8", b'{"model": "\xff"}', differs=client_fault(400, 500)),
    raw("another media type", b"model=x", headers={"Content-Type": "text/plain"}, differs=client_fault(415, 500)),
    raw("no messages", b'{"model": "%s"}' % MODEL.encode()),
    raw("no prompt", b'{"model": "%s"}' % MODEL.encode(), path=TEXT),
    raw("an unknown path", b"{}", path="/v1/nothing", differs=client_fault(404, 404)),
    raw("another method", None, path=CHAT, method="DELETE", differs=client_fault(405, 404)),
    raw("GET of an endpoint", None, path=CHAT, method="GET", differs=client_fault(405, 404)),
    chat("an unknown model", model="gpt-nonexistent", differs=refused("llama-server answers with the model it has", 404)),
    chat("no messages in the list", messages=[], differs=refused("nothing to answer; OpenAI refuses it as well")),
    chat("messages of another type", messages="Hello"),
    chat("a message without a role", messages=[{"content": "Hello"}], differs=client_fault(400, 500)),
    chat("a message without content", messages=[{"role": "user"}]),
    chat("an unknown role", messages=[{"role": "wizard", "content": "Hello"}], differs=OPENAI_TOO),
    chat("a part of an unknown type", messages=user([{"type": "hologram", "hologram": "x"}])),
    chat("an image for a text model", messages=user([IMAGE]), differs=client_fault(400, 500)),
    chat("max_tokens below zero", max_tokens=-5),
    chat("max_tokens of another type", max_tokens="many"),
    chat("temperature of another type", temperature="hot"),
    chat("temperature below zero", temperature=-1, differs=OPENAI_TOO),
    chat("top_logprobs without logprobs", top_logprobs=2),
    chat("top_logprobs out of range", logprobs=True, top_logprobs=1000, differs=refused("OpenAI stops at 20")),
    chat("stop of another type", stop=5, differs=refused("llama-server ignores it")),
    chat("stream of another type", stream="yes"),
    chat("n of zero", n=0),
    chat("a bias for a text", logit_bias={"hello": 1}, differs=refused("keys are token ids; llama-server tokenizes texts")),
    chat("a prompt over the context", messages=user("word " * 9000), differs=OVERFLOW),
    text("a prompt of another type", prompt={"a": 1}),
    text("a token outside the vocabulary", prompt=[10**6]),
    text("a negative token", prompt=[-1]),
    text("too many logprobs", logprobs=1000, differs=refused("the protocol carries 20 at most")),
]
