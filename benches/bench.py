"""Runs a named benchmark end to end and prints a row per figure. `./bench` starts this."""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))

import figures  # noqa: E402
import grid  # noqa: E402

NAMES = {
    "gateway": "our gateway and a worker node against llama-server: decode speed, time to first token, many streams",
    "invariance": "what exact costs in prefill and decode against default kernels, per quantisation",
    "slices": "2 and 3 stages on this machine against the whole model on the same cores",
    "wan": "chains of stages over a wide area network: laps against their floor, guesses, faults (root)",
    "failover": "workers and stages killed or hanging in mid-answer: same text, length of the pause",
    "idle": "memory and CPU of a node that does nothing",
    "streams": "200 concurrent streams through one gateway to fake engines",
    "api": "what the gateway itself costs: latency, requests per second, memory of 10,000 idle streams",
    "start": "how long ./run takes to an answer",
    "allocator": "layers to nodes: plans against the best there is, and how long a plan takes",
    "lab": "what the laboratory for wide area networks itself adds to a packet's way, and how many packets it moves (root)",
}
WITHOUT_MODEL = {"allocator", "lab"}


def parse():
    listing = "\n".join(f"  {name:<12}{what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(prog="./bench", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=f"benchmarks:\n{listing}")
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="the figures as JSON")
    output.add_argument("--markdown", action="store_true", help="the figures as a table for docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, default=8, help="interleaved rounds per figure (default 8)")
    parser.add_argument("--count", type=int, help="kills, streams, seconds or starts instead of the benchmark's own number")
    parser.add_argument("--seed", type=int, default=1, help="of what the benchmark draws at random (default 1)")
    parser.add_argument("--part", choices=("laps", "draft", "stalls", "rates"), help="of `wan`: only these figures")
    options = parser.parse_args()
    if options.part and options.name != "wan":
        parser.error("only `wan` has parts")
    return options


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def prepare(options):
    """The binary, a store with the default model, and the model's path."""
    if "OPENGRID_BINARY" not in os.environ:
        build = ["cargo", "build", "--release", "--quiet", "-p", "opengrid-cli"]
        subprocess.run(build, cwd=grid.ROOT, check=True)
    options.store = pathlib.Path(os.environ.get("OPENGRID_MODELS") or grid.ROOT / ".bench" / "store")
    options.store.mkdir(parents=True, exist_ok=True)
    home, env = str(grid.ROOT / ".bench" / "home"), grid.base_env(options.store)
    pulled = grid.run("pull", grid.MODEL, "--home", home, env=env, timeout_s=600)
    if pulled.returncode != 0:
        raise SystemExit(f"bench: the model cannot be fetched: {pulled.stderr.strip()}")
    # The store may hold other models: `invariance` leaves its own there.
    options.model = pathlib.Path(grid.run("show", grid.MODEL, "--path", "--home", home, env=env).stdout.strip())


def main():
    options = parse()
    if options.name not in WITHOUT_MODEL:
        prepare(options)
    found = []
    for figure in importlib.import_module(f"bench_{options.name}").run(options, say):
        found.append(figure)
        say(figures.as_text([figure]).splitlines()[1])
    if options.json:
        print(figures.as_json(options.name, found))
    else:
        print(figures.as_markdown(found) if options.markdown else figures.as_text(found))
    # 1: something was measured and misses its bar.
    return int(any(figure.holds is False for figure in found))


if __name__ == "__main__":
    sys.exit(main())
