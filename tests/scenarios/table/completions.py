"""`/v1/completions`."""

from scenario import Scenario, greedy
from table.reasons import TEXT, refused

PATH = "/v1/completions"
DRAWN = {"temperature": 0.8, "ignore_eos": True, "text": False}
ALL_PROMPTS = TEXT | {"usage.prompt_tokens: =6 != =3": "all prompts count, not the last alone"}
CONTINUED = " a place of endless possibilities, where the boundaries of what's possible are constantly shifting"
ECHO = TEXT | {f"text: {'The sea is' + CONTINUED!r} != {CONTINUED!r}": "llama-server ignores echo"}
CLASSIC = "OpenAI's shape of completions' logprobs; llama-server sends chat's"
LOGPROBS = TEXT | {
    "-choices[].logprobs.content": CLASSIC,
    "+choices[].logprobs.text_offset": CLASSIC,
    "+choices[].logprobs.token_logprobs": CLASSIC,
    "+choices[].logprobs.tokens": CLASSIC,
    "+choices[].logprobs.top_logprobs": CLASSIC,
}


def row(name, differs=TEXT, text=True, **fields):
    body = greedy(**{"prompt": "The sea is"} | fields)
    return Scenario(f"completion: {name}", PATH, body, differs=differs, text=text)


ROWS = [
    row("a text"),
    row("a list of one text", prompt=["The sea is"]),
    row("a list of texts", ALL_PROMPTS, prompt=["The sea is", "The moon is"]),
    row("token ids", prompt=[504, 4674, 314]),
    row("lists of token ids", ALL_PROMPTS, prompt=[[504, 4674, 314], [504, 7250, 314]]),
    row("echo", ECHO, echo=True),
    row("logprobs", LOGPROBS, logprobs=2, max_tokens=4),
    row("a stop string", stop="."),
    row("several stop strings", stop=["never said", "."]),
    row("a seed", seed=3, **DRAWN),
    row("two answers", n=2, seed=3, **DRAWN),
    row("suffix", refused("the model has no tokens for filling in; llama-server ignores it"), False, suffix=" and blue."),
    row("an empty prompt", refused("an empty prompt has no tokens to go on from"), False, prompt=""),
    row("max_tokens left out", prompt="One two three", max_tokens=None, stop=[" "]),
]
