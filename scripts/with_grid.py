#!/usr/bin/env python3
"""Starts a grid (a gateway without a model, two workers), runs a command with the gateway's URL as its last argument,
and exits as it did.

    python scripts/with_grid.py COMMAND...
"""

import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))

from grid import MODEL, Grid  # noqa: E402

WORKERS = 2


def main(command):
    if not command:
        sys.exit("usage: with_grid.py COMMAND...")
    with Grid() as grid:
        gateway = grid.add("gateway")
        for number in range(WORKERS):
            grid.add(f"worker-{number}", serve=MODEL, join=gateway)
        grid.wait_for_workers(WORKERS)
        return subprocess.run([*command, gateway.url], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
