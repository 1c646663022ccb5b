"""A worker's program dies and its host says nothing over UDP: a refusal over TCP tells the gateway, long before silence does."""

import shutil
import signal
import subprocess

import pytest

import pipelines
import wan
from grid import MODEL, wait_until

TOKENS = 60
# Workers have to come over QUIC, which does not notice when the program at the other end dies.
NO_TCP_IN = "chain in { type filter hook input priority 0; iif lo accept; tcp flags & (syn | ack) == syn drop; }"
NO_ICMP_OUT = "chain out { type filter hook output priority 0; meta l4proto { icmp, ipv6-icmp } drop; }"

reason = wan.why_not() or ("" if shutil.which("nft") else "nft is missing")
pytestmark = pytest.mark.skipif(bool(reason), reason=f"no laboratory here: {reason}")


def filters(grid, host, chain):
    with grid.at(host):
        subprocess.run(["nft", "-f", "-"], input=f"table inet silent {{ {chain}; }}", text=True, check=True)


def test_tcp_tells_that_a_worker_is_gone():
    with wan.Wan(hosts=3, delay_ms=10) as grid:
        filters(grid, 0, NO_TCP_IN)
        gateway = grid.add_at(0, "gateway", env={"OPENGRID_LOG_LEVEL": "debug"})
        for host in (1, 2):
            filters(grid, host, NO_ICMP_OUT)
            worker = grid.add_at(host, f"worker-{host}", serve=MODEL, join=gateway, env={"OPENGRID_SERVE_THREADS": "1"})
            with grid.at(host):
                wait_until(f"{worker.name} is ready", worker.serves, 60)
        with grid.at(0):
            grid.wait_for_workers(2, at=gateway)
            undisturbed = pipelines.greedy(gateway, "a lighthouse", tokens=TOKENS)
            killed = []

            def kill(answered):
                if not killed and len(answered.chunks) >= 8:
                    killed.append(grid.by_peer_id(answered.headers["x-opengrid-worker"]))
                    killed[0].signal(signal.SIGKILL)

            answered = pipelines.greedy(gateway, "a lighthouse", kill, tokens=TOKENS)
        assert killed and answered.complete and answered.text == undisturbed.text
        assert "silent, and nothing listens at its port any more" in gateway.log(bytes_max=1_000_000)
