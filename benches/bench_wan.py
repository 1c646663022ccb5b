"""Chains of stages over the laboratory's wide area network: the lap against its floor, guesses, and faults.

A lap is one pass of a token over all stages and back. Its floor is C + D: C the lap of the same chain without delay, taken
in the same run, and D = stages x one way. Tokens that arrive together were drawn in one lap. Needs root.
"""

import wan as laboratory
import wan_draft
import wan_faults
import wan_guesses
from figures import Figure
from wan_grid import chain, cuts, lap_s, story

STAGES = (2, 4, 8)
ROUND_TRIPS_MS = (20, 50, 100, 200)
GUESSES_RTT_MS = 100
FLOOR_BAR = 0.97


def run(options, say):
    if reason := laboratory.why_not():
        raise SystemExit(f"bench: no laboratory here: {reason}")
    parts = {"laps": laps, "draft": wan_draft.figures, "stalls": wan_faults.stalls, "rates": wan_faults.rates}
    for name, part in parts.items():
        if options.part in (None, name):
            yield from part(options, say)


def laps(options, say):
    for stages in STAGES:
        yield from decode(stages, options, say)


def decode(stages, options, say):
    with laboratory.Wan(hosts=stages + 1, models_dir=options.store) as wan:
        gateway, nodes = chain(wan, cuts(stages))
        story(wan, gateway, 0)
        rounds = min(options.rounds, 3)
        compute_s = lap_s(wan, gateway, rounds)
        say(f"{stages} stages without delay: a lap of {compute_s * 1000:.1f} ms")
        for rtt_ms in ROUND_TRIPS_MS:
            wan.set(delay_us=rtt_ms * 500)
            floor_s = compute_s + stages * rtt_ms / 2000
            found_s = lap_s(wan, gateway, 1 if rtt_ms * stages > 400 else rounds)
            say(f"{stages} stages, {rtt_ms} ms: a lap of {found_s * 1000:.1f} ms, floor {floor_s * 1000:.1f} ms")
            ratio = floor_s / found_s
            name = f"{stages} stages, round trip {rtt_ms} ms: laps per second, of F0"
            bar = f">= {FLOOR_BAR:.0%} of the reference"
            yield Figure(name, 1 / found_s, "/s", 1 / floor_s, ratio, bar, ratio >= FLOOR_BAR)
            if rtt_ms == GUESSES_RTT_MS:
                yield from wan_guesses.figures(wan, gateway, nodes[-1], stages, rtt_ms, compute_s, say)
