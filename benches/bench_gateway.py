"""Our gateway and a worker node, as real processes, against llama-server with the same model, threads, slots and
context: what the grid costs. Exact class against the same GGML flags, fast class against a stock build."""

import random
import threading
import time

import client
import reference
from figures import extra, share
from grid import MODEL, Grid

THREADS = 2
SLOTS = 16
CONTEXT_TOKENS = 1024
WORDS = ["river", "stone", "winter", "garden", "letter", "copper", "window", "thunder", "paper", "island", "candle", "market",
         "silver", "forest", "engine", "mirror", "harbour", "violin", "desert", "ladder"]
GREEDY = {"temperature": 0}
# llama-server's own defaults, said to both sides.
TRUNCATED = {"temperature": 1, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
WHOLE_VOCABULARY = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
SAMPLINGS = [("T=0", GREEDY), ("T=1", TRUNCATED), ("T=1, whole vocabulary", WHOLE_VOCABULARY)]


class Side:
    """One of the two servers under test."""

    def __init__(self, url):
        self.url = url

    def ask(self, prompt, tokens, sampling=GREEDY, seed=1):
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "seed": seed} | sampling
        answer = client.stream(self.url, "/v1/completions", body)
        if not answer.complete or answer.usage["completion_tokens"] != tokens:
            raise SystemExit(f"{self.url}: incomplete answer: {answer.status} {answer.error} {answer.usage}")
        return answer


def prompt(rng, words):
    """Different from its first word on, so that no cache holds any of it."""
    return " ".join(rng.choices(WORDS, k=words))


def interleaved(ours, theirs, rounds, measure):
    """`measure(side, round)` on both sides in turns, the first one changing, so that the machine's moods cancel."""
    found = {ours: [], theirs: []}
    for number in range(rounds):
        for side in [ours, theirs] if number % 2 else [theirs, ours]:
            found[side].append(measure(side, number))
            time.sleep(0.2)  # OpenMP's threads spin on for a while after their work
    return found[ours], found[theirs]


def decode_speed(sampling):
    def measure(side, number):
        return side.ask(prompt(random.Random(number), 24), 128, sampling, number).decode_tokens_per_s

    return measure


def first_token_cold_ms(words):
    def measure(side, number):
        return side.ask(prompt(random.Random(f"{words} {number}"), words), 2).first_token_s * 1000

    return measure


def first_token_warm_ms(conversations):
    """One conversation per side that grows by a few words a turn: all but those are in the KV cache."""

    def measure(side, number):
        text = conversations.setdefault(side, prompt(random.Random("warm"), 200))
        conversations[side] = text + " " + WORDS[number % len(WORDS)]
        return side.ask(conversations[side], 2).first_token_s * 1000

    return measure


def total_speed(streams, tokens, sampling):
    def measure(side, number):
        rngs = [random.Random(f"{streams} {number} {stream}") for stream in range(streams)]
        failed = []

        def one(rng):
            try:
                side.ask(prompt(rng, 24), tokens, sampling, number)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=one, args=(rng,)) for rng in rngs]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise SystemExit(f"{side.url}: {failed[0]}")
        return streams * tokens / (time.perf_counter() - started)

    return measure


def measure_class(name, ours, theirs, rounds, say):
    for side in (ours, theirs):
        side.ask("warm up", 16)
    for label, sampling in SAMPLINGS:
        say(f"{name}: one stream, {label}")
        pair = interleaved(ours, theirs, rounds, decode_speed(sampling))
        yield share(f"{name}: decode, 1 stream, {label}", *pair, "tok/s", at_least=0.97)
    for words in (40, 400):
        say(f"{name}: time to first token, cold, {words} words")
        pair = interleaved(ours, theirs, 3 * rounds, first_token_cold_ms(words))
        yield extra(f"{name}: time to first token p50, cold, {words} words", *pair, "ms", at_most=5)
    say(f"{name}: time to first token, warm")
    conversations = {}
    measure = first_token_warm_ms(conversations)
    for side in (ours, theirs):
        measure(side, 0)
    pair = interleaved(ours, theirs, 3 * rounds, measure)
    yield extra(f"{name}: time to first token p50, warm, 200 words", *pair, "ms", at_most=5)
    for streams in (4, 16):
        for label, sampling in SAMPLINGS[:2]:
            say(f"{name}: {streams} streams, {label}")
            pair = interleaved(ours, theirs, max(3, rounds // 2), total_speed(streams, 64, sampling))
            yield share(f"{name}: total, {streams} streams, {label}", *pair, "tok/s", at_least=1.0)


def run(options, say):
    reference.build()
    for name, flavour in (("exact", "exact"), ("fast", "stock")):
        settings = {
            "OPENGRID_SERVE_ENGINE": name, "OPENGRID_SERVE_THREADS": str(THREADS), "OPENGRID_SERVE_SLOTS": str(SLOTS),
            "OPENGRID_SERVE_CONTEXT_TOKENS": str(CONTEXT_TOKENS),
        }
        server = reference.Server(flavour, options.model, THREADS, SLOTS, CONTEXT_TOKENS)
        with Grid(env=settings, models_dir=options.store) as grid, server:
            gateway = grid.add("gateway")
            grid.add("worker", serve=MODEL, join=gateway)
            grid.wait_for_workers(1)
            yield from measure_class(name, Side(gateway.url), Side(server.url), options.rounds, say)
