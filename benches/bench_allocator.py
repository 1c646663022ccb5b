"""Layers to nodes: plans against the best there is, found by trying everything, and how long a plan takes. The instances and
the search are those of the tests, crates/scheduler/src/allocate/tests.rs, which print what is read here."""

import re
import subprocess

import figures
import grid

TESTS = ("plans_are_within_2_percent_of_the_best", "narrow_beams_lose_little", "plans_for_64_nodes_are_made_in_time")
SHARE = re.compile(r"(?P<what>[^,\n]+), (?P<count>\d+) instances: worst (?P<worst>[\d.]+), mean (?P<mean>[\d.]+) of the best")
TIME = re.compile(r"64 nodes, (?P<count>\d+) instances: median (?P<median>[\d.]+) ms, longest (?P<longest>[\d.]+) ms")
WORST_BAR, TIME_BAR_MS = 0.98, 50


def output_of(test):
    command = ["cargo", "test", "--release", "--quiet", "-p", "opengrid-scheduler", "--lib", test, "--", "--nocapture"]
    done = subprocess.run(command, cwd=grid.ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the test {test} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def run(options, say):
    for test in TESTS:
        say(test)
        text = output_of(test)
        for found in SHARE.finditer(text):
            least = WORST_BAR if "beams" not in found["what"] else None
            name = f"{found['what']}, {found['count']} instances"
            yield figures.plain(f"{name}: worst", float(found["worst"]), "of the best value", at_least=least)
            yield figures.plain(f"{name}: mean", float(found["mean"]), "of the best value")
        if found := TIME.search(text):
            name = f"64 nodes, 80 layers, {found['count']} instances"
            yield figures.plain(f"{name}: median", float(found["median"]), "ms", at_most=TIME_BAR_MS)
            yield figures.plain(f"{name}: longest", float(found["longest"]), "ms", at_most=TIME_BAR_MS)
