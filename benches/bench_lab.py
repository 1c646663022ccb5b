"""What the laboratory for wide area networks itself costs: how much later than the set delay packets arrive, and how
many of them it moves (crates/lab/src/measure.rs, which says how the times are taken)."""

import json
import statistics
import subprocess

import figures
import grid
import wan

# Of the design: what the laboratory may add to a packet's way.
ADDED_MAX_MS = 0.3
ROUNDS, PACKETS = 3, 5000


def measure(packets):
    command = [wan.binary(), "measure", "--packets", str(packets)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"opengrid-lab measure: {done.stderr.strip()}")
    return json.loads(done.stdout)


def against_limit(name, value_ms):
    bar, holds = f"<= {ADDED_MAX_MS} ms", value_ms <= ADDED_MAX_MS
    return figures.Figure(name, value_ms, "ms", ADDED_MAX_MS, value_ms / ADDED_MAX_MS, bar, holds)


class Rounds:
    """Medians over rounds, so that one bad moment of the machine is no figure."""

    def __init__(self, packets, say):
        self.rounds = []
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}")
            self.rounds.append(measure(packets))

    def median(self, pick):
        return statistics.median(map(pick, self.rounds))

    def delays(self):
        for index, row in enumerate(self.rounds[0]["one_way"]):
            yield row["delay_ms"], lambda key, index=index: self.median(lambda found: found["one_way"][index][key]) / 1000

    def floods(self):
        for index, row in enumerate(self.rounds[0]["flood"]):
            yield row["packet_bytes"], self.median(lambda found, index=index: found["flood"][index]["delivered_per_s"])


def run(options, say):
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "opengrid-lab"], cwd=grid.ROOT, check=True)
    if reason := wan.why_not():
        raise SystemExit(f"bench: no laboratory here: {reason}")
    rounds = Rounds(options.count or PACKETS, say)
    if not all(found["realtime"] for found in rounds.rounds):
        say("without real-time priority, which this machine refuses: other programs make packets late")
    for delay_ms, added_ms in rounds.delays():
        if delay_ms == 0:
            yield against_limit("no delay: one-way time, p50", added_ms("p50_us"))
            yield against_limit("no delay: one-way time, p99", added_ms("p99_us"))
            continue
        yield against_limit(f"delay {delay_ms} ms: handed over late, p50", added_ms("late_p50_us"))
        yield against_limit(f"delay {delay_ms} ms: handed over late, p99", added_ms("late_p99_us"))
        # The receiver sleeps, and how fast a sleeping core wakes up is the machine's affair.
        yield figures.plain(f"delay {delay_ms} ms: arrived late, p50", added_ms("p50_us"), "ms")
        yield figures.plain(f"delay {delay_ms} ms: arrived late, p99", added_ms("p99_us"), "ms")
    for packet_bytes, per_s in rounds.floods():
        yield figures.plain(f"packets of {packet_bytes} bytes", per_s, "packets/s")
    yield figures.plain("one TCP connection", rounds.median(lambda found: found["tcp_bytes_per_s"]) / 1e6, "MB/s")
