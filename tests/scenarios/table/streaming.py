"""Server-sent events of chat and completions."""

from scenario import Scenario, greedy, user
from table.reasons import CHAT_STREAM, CHAT_STREAM_LOGPROBS, CHAT_STREAM_USAGE, TEXT_STREAM, TEXT_STREAM_USAGE

CAPITAL = user("What is the capital of France?")
USAGE = {"include_usage": True}


def chat(name, differs=CHAT_STREAM, text=True, messages=CAPITAL, **fields):
    body = greedy(stream=True, messages=messages, **fields)
    return Scenario(f"chat stream: {name}", "/v1/chat/completions", body, differs=differs, text=text)


def completion(name, differs=TEXT_STREAM, text=True, **fields):
    body = greedy(stream=True, **{"prompt": "The sea is"} | fields)
    return Scenario(f"completion stream: {name}", "/v1/completions", body, differs=differs, text=text)


ROWS = [
    chat("without usage"),
    chat("with usage", CHAT_STREAM_USAGE, stream_options=USAGE),
    chat("usage declined", stream_options={"include_usage": False}),
    chat("a stop string", CHAT_STREAM_USAGE, stop=[" Mar"], stream_options=USAGE),
    chat("an answer that ends by itself", messages=user("Say only: yes"), max_tokens=64),
    chat("logprobs", CHAT_STREAM_LOGPROBS, logprobs=True, top_logprobs=2, max_tokens=8),
    chat("two answers", n=2, temperature=0.8, seed=1, ignore_eos=True, text=False),
    chat("one token", max_tokens=1),
    completion("without usage"),
    completion("with usage", TEXT_STREAM_USAGE, stream_options=USAGE),
    completion("a stop string", stop="."),
]
