"""The NAT laboratory of tests/lab/nat.sh with real nodes in it. Needs root and nftables."""

import contextlib
import ctypes
import itertools
import os
import subprocess

from grid import ROOT, Grid

SCRIPT = ROOT / "tests" / "lab" / "nat.sh"
CLONE_NEWNET = 0x40000000
numbers = itertools.count()


def why_not():
    """Why this machine cannot do it, or nothing."""
    checked = subprocess.run([SCRIPT, "check"], capture_output=True, text=True, check=False)
    return checked.stdout.strip() if checked.returncode else ""


def enter(file):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def inside(namespace):
    """What this thread does and starts meanwhile happens in that network namespace."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        enter(there)
        try:
            yield
        finally:
            enter(home)


class Laboratory(Grid):
    """A public node's place `p`, and `a` and `b` behind NATs of their own."""

    def __init__(self, kind):
        super().__init__()
        self.name, self.kind = f"e{os.getpid() % 100_000}{chr(ord('a') + next(numbers) % 26)}", kind

    def __enter__(self):
        subprocess.run([SCRIPT, "up", self.name, self.kind], check=True)
        return super().__enter__()

    def __exit__(self, *reason):
        try:
            super().__exit__(*reason)
        finally:
            subprocess.run([SCRIPT, "down", self.name], check=True)

    def place(self, letter):
        return inside(f"{self.name}-{letter}")

    def add_at(self, letter, **options):
        """A started node in that place. Its API is on the place's own loopback: talk to it within `place`."""
        with self.place(letter):
            return self.add(letter, **options)
