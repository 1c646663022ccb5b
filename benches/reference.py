"""llama-server and llama-quantize as `benches/build-reference` builds them."""

import os
import pathlib
import shutil
import subprocess

import client
import grid

OUT = grid.ROOT / ".bench" / "reference"


def build():
    subprocess.run([str(grid.ROOT / "benches" / "build-reference")], check=True)


def env(flavour):
    """`stock`: llama.cpp's defaults. `exact`: the flags of our exact class."""
    libraries = [OUT / "bin"] if flavour == "stock" else [OUT / "exact-lib", OUT / "bin"]
    found = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    found.pop("GGML_CPU_TILED_MM", None)
    return found | ({"GGML_CPU_TILED_MM": "0"} if flavour == "exact" else {})


def program(name):
    return str(OUT / "bin" / name)


class Server:
    """A llama-server process. Its prompt cache in host memory is off: it costs time where nothing can be reused."""

    def __init__(self, flavour, model, threads, slots, context_tokens, options=()):
        self.port = grid.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            program("llama-server"), "-m", str(model), "--host", "127.0.0.1", "--port", str(self.port), "-t", str(threads),
            "-tb", str(threads), "-np", str(slots), "-c", str(slots * context_tokens), "--no-ui", "--cache-ram", "0",
            "--log-disable",
        ]
        self.command += ["-fa", "off", "--no-kv-unified"] if flavour == "exact" else []
        self.command += options
        if guard := shutil.which("setpriv"):
            self.command = [guard, "--pdeathsig", "KILL", *self.command]
        self.env, self.process = env(flavour), None

    def __enter__(self):
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, env=self.env, stdin=null, stdout=null, stderr=null)

        def healthy():
            if self.process.poll() is not None:
                raise SystemExit(f"llama-server exited with {self.process.returncode}: {' '.join(self.command)}")
            return client.request(self.url, "GET", "/health", timeout_s=2)[0] == 200

        grid.wait_until("llama-server answers", healthy, 60)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def quantised(source, kind):
    """`source` requantised, kept under .bench/quantised. Not a way to make good models: the speed is the same, the text
    is worse than from the original weights."""
    target = grid.ROOT / ".bench" / "quantised" / f"{pathlib.Path(source).stem.partition('.Q')[0]}.{kind}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_suffix(".half")
        command = [program("llama-quantize"), "--allow-requantize", str(source), str(half), kind]
        subprocess.run(command, env=env("stock"), check=True, capture_output=True)
        half.rename(target)
    return target
