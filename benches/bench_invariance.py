"""What batch invariance costs: one node in its exact and its fast class against stock llama-server (llama.cpp's default
kernels), in prefill and decode, per quantisation. No bars: these are prices, to know and to publish."""

import json
import random
import time

import client
import reference
from bench_gateway import prompt
from figures import share
from grid import MODEL, Grid, base_env, run as opengrid

QUANTISATIONS = ["Q4_1", "Q4_0", "Q8_0", "Q4_K_M"]
THREADS = 2
SLOTS = 4
CONTEXT_TOKENS = 1024
PREFILL_WORDS = 500
DECODE_TOKENS = 96


def measure(url, model, number):
    """(prefill, decode) in tokens per second: of a long prompt that no cache holds, and of one stream after a short."""
    rng = random.Random(number)
    ask = lambda words, tokens: client.stream(url, "/v1/completions", {  # noqa: E731
        "model": model, "prompt": prompt(rng, words), "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
    long, short = ask(PREFILL_WORDS, 1), ask(16, DECODE_TOKENS)
    if not (long.complete and short.complete):
        raise SystemExit(f"{url}: incomplete answer: {long.error} {short.error}")
    return long.usage["prompt_tokens"] / long.first_token_s, short.decode_tokens_per_s


def pulled(model, options):
    """The id under which a GGUF file is in the store."""
    home = options.store.parent / "home"
    found = opengrid("pull", str(model), "--json", "--home", str(home), env=base_env(options.store), timeout_s=120)
    if found.returncode != 0:
        raise SystemExit(f"opengrid pull {model}: {found.stderr}")
    return json.loads(found.stdout)["id"]


def serving(grid, mode, model_id):
    settings = {"OPENGRID_SERVE_ENGINE": mode, "OPENGRID_SERVE_THREADS": str(THREADS), "OPENGRID_SERVE_SLOTS": str(SLOTS),
                "OPENGRID_SERVE_CONTEXT_TOKENS": str(CONTEXT_TOKENS)}
    node = grid.add(mode, serve=model_id, env=settings)
    grid.wait_for_workers(1, at=node, model=model_id)
    wanted = "exact:" if mode == "exact" else "approximate"
    (served,) = node.status()["models"]
    if not served["class"].startswith(wanted):
        raise SystemExit(f"{mode} {model_id} runs as {served['class']}")
    return node.url


def run(options, say):
    reference.build()
    for kind in QUANTISATIONS:
        file = options.model if kind == "Q4_1" else reference.quantised(options.model, kind)
        model_id = MODEL if kind == "Q4_1" else pulled(file, options)
        with Grid(models_dir=options.store) as grid, reference.Server("stock", file, THREADS, SLOTS, CONTEXT_TOKENS) as stock:
            urls = {"exact": serving(grid, "exact", model_id), "fast": serving(grid, "fast", model_id), "stock": stock.url}
            samples = {name: [] for name in urls}
            for number in range(options.rounds + 1):
                say(f"{kind}, round {number}")
                for name in sorted(urls, reverse=bool(number % 2)):
                    pair = measure(urls[name], model_id, number)
                    time.sleep(0.2)  # OpenMP's threads spin on for a while after their work
                    if number:  # the first round warms up
                        samples[name].append(pair)
        for name in ("exact", "fast"):
            for index, label in enumerate(("prefill", "decode")):
                ours, theirs = ([pair[index] for pair in samples[which]] for which in (name, "stock"))
                yield share(f"{kind}: {label}, {name} against stock llama.cpp", ours, theirs, "tok/s")
