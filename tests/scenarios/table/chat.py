"""`/v1/chat/completions`: messages and options, answered in one piece."""

from scenario import Scenario, greedy, user
from table.reasons import CHAT, CHAT_LOGPROBS, CHAT_TOP_LOGPROBS

PATH = "/v1/chat/completions"
CAPITAL = user("What is the capital of France?")
# A drawn text differs; its length must not.
DRAWN = {"temperature": 0.8, "ignore_eos": True, "text": False}
JOINED = "we put nothing between text parts, llama-server a line break"
PARTS = CHAT | {
    "usage.prompt_tokens: =37 != =38": JOINED,
    """text: "L'Étoile, la Marseillaise, la femme," != 'The capital of France is Paris.'""": JOINED,
    'choices[].finish_reason: ="length" != ="stop"': JOINED,
}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def row(name, differs=CHAT, text=True, messages=CAPITAL, **fields):
    return Scenario(f"chat: {name}", PATH, greedy(messages=messages, **fields), differs=differs, text=text)


ROWS = [
    row("a user message"),
    row("a system message", messages=[{"role": "system", "content": "Answer in French."}, *CAPITAL]),
    row("a developer message", messages=[{"role": "developer", "content": "Answer in French."}, *CAPITAL]),
    row("a conversation", messages=[*CAPITAL, {"role": "assistant", "content": "Paris."}, *user("And of Italy?")]),
    row("content parts", PARTS, messages=user(parts("What is the capital", " of France?"))),
    row("one content part", messages=user(parts("What is the capital of France?"))),
    row("names", messages=[{"role": "user", "name": "ada", "content": "Who am I?"}]),
    row("unicode", messages=user("Traduis: «naïve café» 東京 🗼")),
    row("an empty user message", messages=user("")),
    row("max_completion_tokens", max_tokens=None, max_completion_tokens=5),
    row("max_tokens of one", max_tokens=1),
    row("an answer that ends by itself", messages=user("Say only: yes"), max_tokens=64),
    row("a stop string", stop=","),
    row("several stop strings", stop=["never said", "Mar"]),
    row("a stop string that never comes", stop=["never said"]),
    row("an empty list of stops", stop=[]),
    row("a bias that forbids tokens", logit_bias={"60": -100, "504": -100}),
    row("a bias that forces a token", logit_bias={"4052": 100}, max_tokens=3),
    row("logprobs", CHAT_LOGPROBS, logprobs=True, max_tokens=8),
    row("top_logprobs", CHAT_TOP_LOGPROBS, logprobs=True, top_logprobs=3, max_tokens=8),
    row("logprobs off", logprobs=False),
    row("a seed", seed=7, **DRAWN),
    row("a seed at temperature 0", seed=7),
    row("top_p, top_k and min_p", top_p=0.9, top_k=20, min_p=0.05, seed=1, **DRAWN),
    row("penalties", presence_penalty=0.5, frequency_penalty=0.5, seed=1, **DRAWN),
    row("no penalties", presence_penalty=0, frequency_penalty=0),
    row("two answers", n=2, seed=1, **DRAWN),
    row("nulls for absent fields", stop=None, seed=None, logit_bias=None, n=None, top_p=None),
    row("unknown fields", user="someone", metadata={"a": "b"}, store=False, my_own_field=[1]),
    row("a service tier", CHAT | {"+service_tier": "OpenAI says which tier it was"}, service_tier="auto"),
]
