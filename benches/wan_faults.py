"""Stages that die, over a wide area network: how long a client waits, and what frequent deaths cost."""

import itertools
import queue
import random
import signal
import threading
import time

import pipelines
import wan as laboratory
from figures import Figure, percentile, plain
from wan_grid import FACTS, ask, chain, restart, story

KILLS, HOLES = 50, 20
STALL_RTT_MS = 100
STALL_MAX_S = {"killed": 2, "black hole": 4}
# A stage dies once in so many steps, at a moment drawn anew; so many steps are taken.
RATES = ((1_000, 2_000, 0.9), (100, 1_000, 0.5))
RATES_RTT_MS = 20
STEPS_OF_AN_ANSWER = 400
RESTART_AFTER_S = 1
# Each node has the machine to itself as long as the others wait, as it would have its own.
THREADS = 2


def stalls(options, say):
    """At about 512 tokens of context, every stage twice: kill -9, and a host that is cut off."""
    ranges = list(pipelines.CUTS) * 2
    with laboratory.Wan(hosts=len(ranges) + 1, delay_ms=STALL_RTT_MS / 2, models_dir=options.store) as wan:
        gateway, nodes = chain(wan, ranges, THREADS)
        prompt = [{"role": "user", "content": f"{FACTS * 22} Go on with the story."}]

        def answer(on_chunk=None):
            return ask(wan, gateway, on_chunk=on_chunk, temperature=0, messages=prompt)

        expected = answer()
        say(f"context: {expected.usage['prompt_tokens']} tokens, then {expected.usage['completion_tokens']}")
        for kind, count in (("killed", options.count or KILLS), ("black hole", options.count or HOLES)):
            waits, same = [], 0
            for at in range(count):
                rng = random.Random(options.seed * 1000 + at)
                node, answered, wait_s = one_fault(wan, gateway, answer, kind, len(expected.chunks), rng)
                waits.append(wait_s)
                same += answered.text == expected.text
                say(f"{kind} {at + 1}: {node.name}, stall {wait_s:.2f} s, identical: {answered.text == expected.text}")
                wan.heal(node.host)
                node.signal(signal.SIGKILL)
                restart(wan, gateway, node, len(nodes))
            name = f"{kind}, {STALL_RTT_MS} ms"
            yield plain(f"{name}: identical greedy text", same, "answers", at_least=count)
            yield plain(f"{name}: stall p50", percentile(waits, 50), "s")
            yield plain(f"{name}: stall p95", percentile(waits, 95), "s", at_most=STALL_MAX_S[kind])


def one_fault(wan, gateway, answer, kind, chunks, rng):
    after, hit = rng.randrange(1, max(2, chunks * 2 // 3)), {}

    def strike(answered):
        if hit or len(answered.chunks) < after:
            return
        node = stage_of_the_answer(wan, gateway, rng)
        if kind == "killed":
            node.signal(signal.SIGKILL)
        else:
            wan.cut(node.host)
        hit.update(node=node, at=time.perf_counter())

    answered = answer(strike)
    return hit["node"], answered, answered.longest_gap_s(hit["at"])


def stage_of_the_answer(wan, gateway, rng):
    stages = gateway.status()["pipelines"][0]["stages"]
    return wan.by_peer_id(rng.choice(stages)["peer_id"])


class Repair:
    """Brings killed nodes back while answers run. One thread for all: nodes die with the thread that started them."""

    def __init__(self, wan, gateway, count):
        self.wan, self.gateway, self.count, self.killed = wan, gateway, count, queue.Queue()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def kill(self, node):
        node.signal(signal.SIGKILL)
        self.killed.put(node)

    def work(self):
        while True:
            node = self.killed.get()
            time.sleep(RESTART_AFTER_S)
            restart(self.wan, self.gateway, node, self.count)
            self.killed.task_done()


def rates(options, say):
    """The time that the same answers take with and without stages that die."""
    ranges = list(pipelines.CUTS) * 2
    with laboratory.Wan(hosts=len(ranges) + 1, delay_ms=RATES_RTT_MS / 2, models_dir=options.store) as wan:
        gateway, nodes = chain(wan, ranges, THREADS)
        repair = Repair(wan, gateway, len(nodes))
        for steps_per_fault, steps, least in RATES:
            answers = steps // STEPS_OF_AN_ANSWER + (steps % STEPS_OF_AN_ANSWER > 0)
            rng = random.Random(options.seed)
            moments = [at + rng.randrange(steps_per_fault) for at in range(0, steps, steps_per_fault)]
            free_s, free = run_answers(wan, gateway, answers, None)
            strikes = Strikes(wan, gateway, repair, moments, rng)
            faulty_s, faulty = run_answers(wan, gateway, answers, strikes)
            repair.killed.join()
            same = sum(one == other for one, other in zip(free, faulty))
            say(f"a fault in {steps_per_fault} steps: {strikes.count} faults, {free_s:.1f} s without, {faulty_s:.1f} s with them")
            name = f"a fault in {steps_per_fault} steps, {RATES_RTT_MS} ms"
            tokens, ratio = answers * STEPS_OF_AN_ANSWER, free_s / faulty_s
            bar, holds = f">= {least:.0%} of the reference", ratio >= least
            yield Figure(f"{name}: speed", tokens / faulty_s, "tok/s", tokens / free_s, ratio, bar, holds)
            yield plain(f"{name}: identical text", same, "answers", at_least=answers)


class Strikes:
    """Kills a stage of the answer at each of the moments, which count the steps of all answers."""

    def __init__(self, wan, gateway, repair, moments, rng):
        self.wan, self.gateway, self.repair, self.rng = wan, gateway, repair, rng
        self.moments, self.steps, self.count = list(moments), itertools.count(), 0

    def step(self, _):
        if self.moments and next(self.steps) >= self.moments[0]:
            self.moments.pop(0)
            self.repair.kill(stage_of_the_answer(self.wan, self.gateway, self.rng))
            self.count += 1


def run_answers(wan, gateway, count, strikes):
    began, texts = time.perf_counter(), []
    for number in range(count):
        on_chunk = strikes.step if strikes else None
        texts.append(story(wan, gateway, number, tokens=STEPS_OF_AN_ANSWER, on_chunk=on_chunk).text)
    return time.perf_counter() - began, texts
