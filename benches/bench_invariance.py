"""What batch invariance costs: our engine in its exact and its fast class against llama.cpp's default kernels, in prefill
and decode, per quantisation. No bars: these are prices, to know and to publish."""

import json
import subprocess

import reference
from figures import share
from grid import binary

QUANTISATIONS = ["Q4_1", "Q4_0", "Q8_0", "Q4_K_M"]
THREADS = 2
PREFILL_TOKENS = 512
DECODE_TOKENS = 96


def ours(model, mode):
    """(prefill, decode) of our engine, in tokens per second."""
    command = [binary(), "engine-bench", str(model), "--mode", mode, "--threads", str(THREADS), "--prompt", str(PREFILL_TOKENS),
               "--generate", str(DECODE_TOKENS)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if shown.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {shown.stderr[-500:]}")
    found = json.loads(shown.stdout)
    return found["prefill_tokens_per_s"], found["decode_tokens_per_s"]


def run(options, say):
    reference.build()
    for kind in QUANTISATIONS:
        model = options.model if kind == "Q4_1" else reference.quantised(options.model, kind)
        samples = {"exact": [], "fast": [], "stock": []}
        for number in range(max(3, options.rounds // 2)):
            say(f"{kind}, round {number + 1}")
            order = [("exact", ours), ("stock", None), ("fast", ours)]
            for name, measure in order if number % 2 else reversed(order):
                pair = measure(model, name) if measure else reference.llama_bench(name, model, THREADS, PREFILL_TOKENS, DECODE_TOKENS)
                samples[name].append(pair)
        for name in ("exact", "fast"):
            for index, label in ((0, f"prefill {PREFILL_TOKENS}"), (1, "decode")):
                column = lambda which: [pair[index] for pair in samples[which]]  # noqa: B023, E731
                yield share(f"{kind}: {label}, {name} against stock llama.cpp", column(name), column("stock"), "tok/s")
