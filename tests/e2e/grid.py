"""Starts real grids for tests and benchmarks: N processes of the real binary, own homes, free ports, always cleaned up.

    with Grid() as grid:
        gateway = grid.add("gateway")                      # serves nothing
        worker = grid.add("worker", serve=MODEL, join=gateway)
        grid.wait_for_workers(1)

Standard library only; Linux only (reads /proc). Start nodes from the main thread: they die with the thread that
started them, so that a killed test leaves nothing behind.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import client

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m"
EMBEDDING_MODEL = "all-minilm-l6-v2"
START_S = 40
# Workers share this machine's cores: llama.cpp's threads spin while they wait for each other, so that more threads than
# cores make all of them many times slower.
WORKER_THREADS = max(1, (os.cpu_count() or 1) // 2)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def binary():
    path = pathlib.Path(os.environ.get("OPENGRID_BINARY", ROOT / "target" / "release" / "opengrid"))
    if not path.exists():
        raise RuntimeError(f"{path} is missing: cargo build --release -p opengrid-cli")
    return str(path)


def model_file():
    path = os.environ.get("OPENGRID_TEST_MODEL", "")
    if not os.path.exists(path):
        raise RuntimeError("OPENGRID_TEST_MODEL must be the path of SmolLM2-135M-Instruct.Q4_1.gguf; ./test sets it")
    return path


def embedding_model_file():
    return os.environ["OPENGRID_TEST_EMBEDDING_MODEL"]


def free_port():
    """A port that is free for TCP and UDP, below the range from which the kernel hands out its own."""
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("0.0.0.0", port))
            return port
        except OSError:
            continue
    raise RuntimeError("no free port between 20000 and 32000")


def wait_until(what, condition, timeout_s, every_s=0.05):
    """Polls `condition` (exceptions count as "not yet"); its first true value, or TimeoutError with the last reason."""
    deadline, last = time.monotonic() + timeout_s, None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
            last = None
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            last = error
        time.sleep(every_s)
    raise TimeoutError(f"not within {timeout_s} s: {what}" + (f" ({last})" if last else ""))


def children_of(pid):
    """All descendants of a process."""
    found, todo = [], [pid]
    while todo:
        try:
            tasks = os.listdir(f"/proc/{todo[0]}/task")
            for task in tasks:
                with open(f"/proc/{todo[0]}/task/{task}/children") as file:
                    found += (new := [int(child) for child in file.read().split()])
                    todo += new
        except OSError:
            pass
        todo.pop(0)
    return found


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rss_bytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Node:
    """One `opengrid up` process."""

    def __init__(self, home, name, options, env, listen="127.0.0.1"):
        self.home, self.name, self.options, self.env, self.listen = home, name, options, env, listen
        self.api_port, self.p2p_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.api_port}"
        self.log_path = home / "node.log"
        self.process = None
        self.peer_id = None

    def start(self, wait=True, timeout_s=START_S):
        command = [binary(), "up", "--home", str(self.home), "--listen", f"{self.listen}:{self.api_port}"]
        command += ["--p2p-port", str(self.p2p_port), *self.options]
        if guard := shutil.which("setpriv"):
            command = [guard, "--pdeathsig", "KILL", *command]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait_healthy(timeout_s)
        return self

    def wait_healthy(self, timeout_s=START_S):
        def healthy():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} exited with {self.process.returncode}:\n{self.log()}")
            return client.request(self.url, "GET", "/health", timeout_s=2)[0] == 200

        wait_until(f"{self.name} answers /health", healthy, timeout_s)
        self.peer_id = self.status()["peer_id"]

    @property
    def pid(self):
        return self.process.pid

    def log(self, bytes_max=4000):
        data = self.log_path.read_bytes() if self.log_path.exists() else b""
        return data[-bytes_max:].decode(errors="replace")

    def get(self, path):
        """As the node's own commands ask: with the local token, which is needed where keys are."""
        return client.get_json(self.url, path, headers=self.authorised())

    def authorised(self):
        return {"Authorization": f"Bearer {self.token()}"}

    def status(self):
        return self.get("/grid/v1/status")

    def peers(self):
        return self.get("/grid/v1/peers")

    def metrics(self):
        """Sample name with labels -> value."""
        text = client.request(self.url, "GET", "/metrics", headers=self.authorised())[2].decode()
        rows = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def connected(self):
        """The peer ids that this node lists as connected or serving."""
        rows = rows_of(self.peers(), "peers")
        return {row["peer_id"] for row in rows if row["connected"] or row["models"]}

    def workers(self, model=MODEL):
        """How many live workers of a model this node knows."""
        rows = rows_of(self.get("/grid/v1/models"), "models")
        return next((row["workers"] for row in rows if row["id"] == model), 0)

    def serves(self):
        """Whether this node's own models are all ready."""
        models = self.status()["models"]
        return bool(models) and all(model["state"] == "ready" for model in models)

    def invite(self):
        shown = run("invite", "--home", str(self.home), env=self.env)
        if shown.returncode != 0:
            raise RuntimeError(f"opengrid invite: {shown.stderr}")
        return shown.stdout.splitlines()[0]

    def token(self):
        return json.loads((self.home / "runtime.json").read_text())["token"]

    def engine_children(self):
        return [pid for pid in children_of(self.pid) if "engine-child" in command_line(pid)]

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """kill -9 of the node's process alone; its children have to notice by themselves."""
        self.signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self, timeout_s=15):
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def restart(self):
        """Starts the same home again on the same ports."""
        return self.start()

    def end(self):
        """Whatever it takes."""
        if self.process is None:
            return
        family = children_of(self.pid)
        try:
            self.stop(timeout_s=8)
        except subprocess.TimeoutExpired:
            self.kill()
        deadline = time.monotonic() + 3
        while any(alive(pid) for pid in family) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in family:
            if alive(pid) and "opengrid" in command_line(pid):
                os.kill(pid, signal.SIGKILL)


def rows_of(answer, key):
    """Lists come bare or in an object, as OpenAI's do."""
    return answer if isinstance(answer, list) else answer.get("data", answer.get(key, []))


def run(*arguments, env=None, input=None, timeout_s=60):
    """Runs the binary to its end."""
    return subprocess.run(
        [binary(), *arguments], env=env, input=input, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def base_env(models_dir):
    """No variable of the caller's steers the nodes; no grid of another process on this machine is found by accident."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENGRID_")}
    return env | {
        "OPENGRID_MODELS": str(models_dir),
        "OPENGRID_NETWORK_MDNS": "false",
        "OPENGRID_NETWORK_UPNP": "false",
        "NO_COLOR": "1",
    }


def shared_store(model=MODEL):
    """The model store that all grids of this checkout share, with `model` in it."""
    store = pathlib.Path(os.environ.get("OPENGRID_MODELS") or ROOT / "target" / "e2e" / "models")
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="opengrid-pull-") as home:
        env = base_env(store)
        if run("show", model, "--path", "--home", home, env=env).returncode != 0:
            wanted = model_file() if model == MODEL else model
            pulled = run("pull", wanted, "--home", home, env=env, timeout_s=300)
            if pulled.returncode != 0:
                raise RuntimeError(f"opengrid pull {wanted}: {pulled.stderr}")
    return store


class Grid:
    """Some nodes, and the directory in which they live."""

    def __init__(self, env=None, models_dir=None):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="opengrid-grid-"))
        self.models_dir = models_dir or shared_store()
        self.env = base_env(self.models_dir) | {"OPENGRID_SERVE_THREADS": str(WORKER_THREADS)} | (env or {})
        self.nodes = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for node in reversed(self.nodes):
            if kind is not None:
                print(f"--- {node.name} ({node.peer_id})\n{node.log()}")
            node.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def node(self, name, serve="none", join=None, env=None, options=(), models_dir=None, listen="127.0.0.1"):
        """A node that is not started yet. `join` is a node or an invite."""
        home = self.directory / name
        home.mkdir()
        arguments = ["--serve", serve]
        if join:
            arguments += ["--join", join.invite() if isinstance(join, Node) else join]
        env = self.env | (env or {})
        if models_dir:
            env["OPENGRID_MODELS"] = str(models_dir)
        node = Node(home, name, [*arguments, *options], env, listen)
        self.nodes.append(node)
        return node

    def add(self, name, wait=True, **options):
        return self.node(name, **options).start(wait=wait)

    def by_peer_id(self, peer_id):
        return next(node for node in self.nodes if node.peer_id == peer_id)

    def wait_for_workers(self, count, at=None, model=MODEL, timeout_s=START_S):
        """Until the first node (or `at`) knows exactly `count` workers."""
        node = at or self.nodes[0]
        wait_until(f"{node.name} knows {count} workers of {model}", lambda: node.workers(model) == count, timeout_s)
        return self
