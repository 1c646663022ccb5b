"""Grids over a wide area network of this machine: nodes in the hosts of an `opengrid-lab`. Needs root.

    with Wan(hosts=3, delay_ms=50) as wan:
        gateway = wan.add_at(0, "gateway")
        worker = wan.add_at(1, "worker", serve=MODEL, join=gateway)
        wan.set(0, 1, delay_us=100_000)          # both ways
        wan.cut(0, 1)                            # a black hole that nobody is told of
        with wan.at(0):
            client.stream(gateway.url, ...)

A node's API is on its host's own loopback: talk to it within `at`.
"""

import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess

from grid import ROOT, Grid, Node
from lab import inside

REPLY_S = 10
numbers = itertools.count()


def binary():
    path = pathlib.Path(os.environ.get("OPENGRID_LAB_BINARY", ROOT / "target" / "release" / "opengrid-lab"))
    if not path.exists():
        raise RuntimeError(f"{path} is missing: cargo build --release -p opengrid-lab")
    return str(path)


def why_not():
    """Why this machine cannot do it, or nothing."""
    checked = subprocess.run([binary(), "check"], capture_output=True, text=True, check=False)
    return (checked.stdout + checked.stderr).strip() if checked.returncode else ""


class Wan(Grid):
    """Hosts 0, 1, ... with equal links at first. `options` are those of `opengrid-lab up`."""

    def __init__(self, hosts, delay_ms=0, options=(), **grid):
        self.name = f"w{os.getpid() % 1_000_000}{chr(ord('a') + next(numbers) % 26)}"
        command = [binary(), "up", "--name", self.name, "--hosts", str(hosts), "--delay-ms", str(delay_ms), *options]
        if guard := shutil.which("setpriv"):
            command = [guard, "--pdeathsig", "TERM", *command]
        self.switch = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            line = self.switch.stdout.readline()
            if not line:
                raise RuntimeError(f"opengrid-lab ended with {self.switch.wait()}")
            self.control = Control(json.loads(line)["control"])
            super().__init__(**grid)
        except BaseException:
            self.end()
            raise

    def __exit__(self, *reason):
        try:
            super().__exit__(*reason)
        finally:
            self.end()

    def end(self):
        if hasattr(self, "control"):
            self.control.close()
        self.switch.send_signal(signal.SIGTERM)
        self.switch.wait(timeout=10)
        self.switch.stdout.close()

    def namespace(self, host):
        return f"{self.name}{host}"

    def at(self, host):
        """What this thread does and starts meanwhile happens at that host."""
        return inside(self.namespace(host))

    def node_at(self, host, name, join=None, **options):
        """A node that is not started yet: start it within `at(host)`. `join` is a node of this grid or an invite."""
        node = self.node(name, join=self.invite_of(join) if isinstance(join, Node) else join, **options)
        node.host = host
        return node

    def add_at(self, host, name, wait=True, **options):
        node = self.node_at(host, name, **options)
        with self.at(host):
            return node.start(wait=wait)

    def invite_of(self, node):
        with self.at(node.host):
            return node.invite()

    def tell(self, command, start=None, end=None, both_ways=True, **fields):
        """A request of the control socket (crates/lab/src/control.rs). Without `start` it is meant for links from all
        hosts, without `end` for those to all."""
        route = {"from": start, "to": end}
        named = {key: value for key, value in route.items() if value is not None}
        return self.control.ask({"command": command, **named, "both_ways": both_ways, **fields})

    def set(self, start=None, end=None, both_ways=True, **fields):
        """delay_us, jitter_us, loss_ppm, rate_bytes_per_s (0: no limit), queue_bytes, reorder."""
        self.tell("set", start, end, both_ways, **fields)

    def cut(self, start=None, end=None, both_ways=True):
        self.tell("cut", start, end, both_ways)

    def heal(self, start=None, end=None, both_ways=True):
        self.tell("heal", start, end, both_ways)

    def stats(self):
        """With `late_p50_us` and `late_p99_us`: the laboratory's own share of every delay."""
        return self.control.ask({"command": "stats"})


class Control:
    """The control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(REPLY_S)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r")

    def ask(self, request):
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        line = self.lines.readline()
        if not line:
            raise RuntimeError("opengrid-lab has ended")
        reply = json.loads(line)
        if not reply["ok"]:
            raise ValueError(f"opengrid-lab refuses {request}: {reply['error']}")
        return reply

    def close(self):
        self.lines.close()
        self.socket.close()
