"""A model that no node holds whole: answered by several, over the death of some, with the text of the whole model."""

import os
import random
import signal
import subprocess
import threading
import time

import pytest

import pipelines
from failover import SUBJECTS
from grid import MODEL, Grid, rows_of, rss_bytes, run, wait_until
from pipelines import CUTS

KILLS = int(os.environ.get("OPENGRID_TEST_STAGE_KILLS", "6"))
CHURN_S = int(os.environ.get("OPENGRID_TEST_STAGE_CHURN_S", "30"))
CHURN_EVERY_S = 20 if CHURN_S > 300 else 6


@pytest.fixture(scope="module")
def expected():
    """What the whole model answers: greedy and sampled."""
    with Grid() as grid:
        gateway = grid.add("gateway")
        grid.add("worker", serve=MODEL, join=gateway)
        grid.wait_for_workers(1)
        greedy = {subject: pipelines.greedy(gateway, subject) for subject in SUBJECTS[:4]}
        sampled = {subject: pipelines.ask(gateway, subject, seed=9) for subject in SUBJECTS[:2]}
        assert all(answer.complete for answer in [*greedy.values(), *sampled.values()])
        return {name: {s: answer.text for s, answer in answers.items()} for name, answers in
                (("greedy", greedy), ("sampled", sampled))}


@pytest.fixture(scope="module")
def pairs():
    """Every stage twice."""
    with Grid() as grid:
        gateway = grid.add("gateway")
        yield gateway, pipelines.add_stages(grid, gateway, copies=2)


def test_three_stages_answer_as_the_whole_model(pairs, expected):
    gateway, _ = pairs
    for subject, text in expected["greedy"].items():
        answer = pipelines.greedy(gateway, subject)
        assert answer.complete and answer.text == text, answer.error
    for subject, text in expected["sampled"].items():
        answer = pipelines.ask(gateway, subject, seed=9)
        assert answer.complete and answer.text == text, answer.error


def test_sessions_at_once_do_not_change_each_other(pairs, expected):
    gateway, _ = pairs
    answers = {}
    threads = [
        threading.Thread(target=lambda s=subject: answers.update({s: pipelines.greedy(gateway, s)}))
        for subject in expected["greedy"]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for subject, text in expected["greedy"].items():
        assert answers[subject].complete and answers[subject].text == text, answers[subject].error


def test_a_killed_stage_costs_a_pause(pairs):
    gateway, nodes = pairs
    rng = random.Random(7)
    for number in range(KILLS):
        victim, fault = pipelines.fault_round(gateway, nodes, SUBJECTS[number % len(SUBJECTS)], signal.SIGKILL, rng)
        print(fault)
        assert fault.complete and fault.identical, fault
        assert fault.stall_s <= 4, fault
        pipelines.revive(gateway, victim, len(nodes))


def test_a_stage_that_hangs_costs_a_longer_pause(pairs):
    """SIGSTOP: connections stay open, and nothing comes any more."""
    gateway, nodes = pairs
    victim, fault = pipelines.fault_round(gateway, nodes, SUBJECTS[1], signal.SIGSTOP, random.Random(3))
    print(fault)
    assert fault.complete and fault.identical, fault
    assert fault.stall_s <= 6, fault
    pipelines.revive(gateway, victim, len(nodes))


def test_several_faults_in_one_answer(pairs):
    gateway, nodes = pairs
    undisturbed = pipelines.greedy(gateway, SUBJECTS[2])
    victims = []

    def strike(answer):
        if len(victims) < 2 and len(answer.chunks) >= 30 + 60 * len(victims):
            cuts = {node.name.split("-")[1] for node in victims}
            left = [node for node in pipelines.busy(n for n in nodes if n not in victims)]
            # Of another cut each time: of every stage one stays.
            victims.append(next(node for node in left if node.name.split("-")[1] not in cuts))
            victims[-1].kill()

    answer = pipelines.greedy(gateway, SUBJECTS[2], strike)
    assert len(victims) == 2
    assert answer.complete and answer.text == undisturbed.text, answer.error
    for count, victim in enumerate(victims):
        victim.restart()
        wait_until("it is ready", victim.serves, 60)
    pipelines.wait_for_stages(gateway, len(nodes))


@pytest.mark.parametrize("back_after_s", [0.5, 4])
def test_all_stages_may_die_at_once_and_come_back(expected, back_after_s):
    with Grid() as grid:
        gateway = grid.add("gateway")
        nodes = pipelines.add_stages(grid, gateway)
        subject, fallen = SUBJECTS[0], []

        def fell(answer):
            if not fallen and len(answer.chunks) >= 50:
                fallen.append(time.perf_counter())
                for node in nodes:
                    node.signal(signal.SIGKILL)

        def come_back():
            wait_until("the stages died", lambda: fallen, 60)
            for node in nodes:
                node.process.wait(timeout=10)
            time.sleep(back_after_s)
            for node in nodes:
                node.start(wait=False)
            done.wait()

        # They die with the thread that started them.
        done = threading.Event()
        thread = threading.Thread(target=come_back)
        thread.start()
        try:
            answer = pipelines.greedy(gateway, subject, on_chunk=fell)
            faults = {name: count for name, count in gateway.metrics().items() if "peer_faults" in name}
            assert not any(faults.values()), "an honest peer was blamed"
            assert answer.complete and answer.text == expected["greedy"][subject], answer.error
            pipelines.wait_for_stages(gateway, len(nodes))
            again = pipelines.greedy(gateway, subject)
            assert again.complete and again.text == answer.text, again.error
        finally:
            done.set()
            thread.join()


def test_a_stage_that_is_stopped_ends_what_it_has(pairs):
    """SIGTERM: no new sessions, and those that run are not cut off."""
    gateway, nodes = pairs
    undisturbed = pipelines.greedy(gateway, SUBJECTS[3])
    stopped = []

    def stop(answer):
        if not stopped and len(answer.chunks) >= 20:
            stopped.append(pipelines.busy(nodes)[0])
            stopped[0].signal(signal.SIGTERM)

    answer = pipelines.greedy(gateway, SUBJECTS[3], stop)
    assert answer.complete and answer.text == undisturbed.text, answer.error
    assert stopped[0].process.wait(timeout=30) == 0
    stopped[0].restart()
    wait_until("it is ready", stopped[0].serves, 60)
    pipelines.wait_for_stages(gateway, len(nodes))


LONG = "The lighthouse keeper counts ships, clouds and gulls, and writes all of them down in the log. " * 20
LONG_TOKENS = 400


def long_answer(gateway, on_chunk=None):
    """Several hundred tokens of context."""
    prompt = [{"role": "user", "content": f"{LONG}Go on with this story."}]
    return pipelines.ask(gateway, "", tokens=LONG_TOKENS, on_chunk=on_chunk, temperature=0, messages=prompt)


def counted(nodes, name):
    return sum(node.metrics()[f"opengrid_node_{name}_total"] for node in nodes)


class Leaving:
    """Sends SIGTERM to the stage of these layers in mid-answer, and notes when its process is gone, and how."""

    def __init__(self, nodes, cut, then=lambda node: None):
        self.nodes, self.cut, self.then = nodes, cut, then
        self.node, self.at, self.gone_at, self.code = None, None, None, None
        self.done = threading.Event()

    def __call__(self, answer):
        if self.node is None and len(answer.chunks) >= 20:
            self.node = next(node for node in pipelines.busy(self.nodes) if node.name.split("-")[1] == self.cut)
            self.node.signal(signal.SIGTERM)
            self.at = time.perf_counter()
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()

    def watch(self):
        self.then(self.node)
        self.code = self.node.process.wait(timeout=40)
        self.gone_at = time.perf_counter()
        # What it started dies with the thread.
        self.done.wait()

    def wait(self):
        wait_until("the stage is gone", lambda: self.gone_at, 60)

    def come_back(self, gateway, others=()):
        self.wait()
        self.done.set()
        self.thread.join()
        back = {self.node, *others}
        for node in back:
            if node.process.poll() is None:
                node.kill()
            node.restart()
        for node in back:
            wait_until(f"{node.name} is ready", node.serves, 60)
        pipelines.wait_for_stages(gateway, len(self.nodes))


@pytest.mark.parametrize("cut", CUTS, ids=["first", "middle", "last"])
def test_a_stage_that_leaves_hands_its_cache_over(pairs, cut):
    gateway, nodes = pairs
    undisturbed = long_answer(gateway)
    leaving = Leaving(nodes, cut)
    # The counters of the one that leaves go with it: it takes nothing over.
    before, again = {node: counted([node], "handovers") for node in nodes}, counted([gateway], "rows_again")
    answer = long_answer(gateway, leaving)
    leaving.wait()
    stayed = [node for node in nodes if node is not leaving.node]
    taken = counted(stayed, "handovers") - sum(before[node] for node in stayed)
    again = counted([gateway], "rows_again") - again
    context = answer.usage["prompt_tokens"]
    gone_s, rest_s = leaving.gone_at - leaving.at, answer.chunks[-1].at - leaving.at
    print(f"{cut}: {context} tokens and more, stall {answer.longest_gap_s(leaving.at):.2f} s, {again:.0f} rows again, "
          f"gone after {gone_s:.2f} s, the answer took {rest_s:.2f} s more")
    assert answer.complete and answer.text == undisturbed.text, answer.error
    assert leaving.code == 0 and leaving.gone_at < answer.chunks[-1].at, "it waited for the answer's end"
    assert taken == 1 and counted(stayed, "handovers_failed") == 0
    # A lap and its guesses at each stage at most; its context alone would be hundreds.
    assert context > 300 and again <= 3 * 17
    leaving.come_back(gateway)


@pytest.mark.parametrize("after_s", [0.1, 0.32, 0.36, 0.5])
@pytest.mark.parametrize("dies", ["old", "new"])
def test_a_hand_over_that_breaks_costs_a_pause(pairs, dies, after_s):
    """One of the two dies before, amid or after it."""
    gateway, nodes = pairs
    undisturbed = long_answer(gateway)
    dead = []

    def die(node):
        time.sleep(after_s)
        cut = node.name.split("-")[1]
        new = next(other for other in nodes if other is not node and other.name.split("-")[1] == cut)
        dead.append(node if dies == "old" else new)
        dead[0].signal(signal.SIGKILL)
        dead[0].process.wait(timeout=10)
        if dies == "new":
            # It may have been the only one with these layers.
            dead[0].start(wait=False)

    leaving = Leaving(nodes, CUTS[1], die)
    answer = long_answer(gateway, leaving)
    assert answer.complete and answer.text == undisturbed.text, answer.error
    assert not any(count for name, count in gateway.metrics().items() if "peer_faults" in name), "an honest peer was blamed"
    leaving.come_back(gateway, dead)


def test_a_stage_that_nobody_can_replace_ends_what_it_has(expected):
    with Grid() as grid:
        gateway = grid.add("gateway")
        nodes = pipelines.add_stages(grid, gateway)
        subject, text = next(iter(expected["greedy"].items()))
        leaving = Leaving(nodes, CUTS[1])
        answer = pipelines.greedy(gateway, subject, leaving)
        leaving.wait()
        assert answer.complete and answer.text == text, answer.error
        assert leaving.code == 0 and leaving.gone_at >= answer.chunks[-1].at
        assert counted([node for node in nodes if node is not leaving.node], "handovers") == 0
        leaving.done.set()


def test_churn(pairs, expected):
    """Stages die and come back all the time: no request fails, every text is right, the gateway does not grow.
    OPENGRID_TEST_STAGE_CHURN_S=3600 makes it the hour of the acceptance."""
    gateway, nodes = pairs
    rng, until = random.Random(11), time.monotonic() + CHURN_S
    texts = list(expected["greedy"].items())
    wrong, answers = [], []

    def client(number):
        while time.monotonic() < until:
            subject, text = texts[(len(answers) + number) % len(texts)]
            answer = pipelines.greedy(gateway, subject)
            answers.append(answer)
            if not answer.complete or answer.text != text:
                wrong.append((subject, answer.status, answer.error, answer.text))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    at_rest = rss_bytes(gateway.pid)
    for thread in clients:
        thread.start()
    faults = 0
    while time.monotonic() < until - CHURN_EVERY_S:
        time.sleep(CHURN_EVERY_S)
        victim = rng.choice(nodes)
        victim.kill()
        faults += 1
        victim.restart()
        # Of every stage one stays.
        wait_until(f"{victim.name} is ready", victim.serves, 60)
    for thread in clients:
        thread.join()
    print(f"{len(answers)} answers, {faults} faults, the gateway grew by {(rss_bytes(gateway.pid) - at_rest) / 1e6:.1f} MB")
    assert not wrong, wrong[:3]
    assert faults >= 2 and len(answers) >= faults
    assert rss_bytes(gateway.pid) < at_rest + 64e6
    pipelines.wait_for_stages(gateway, len(nodes))


def disk_bytes(directory):
    return int(subprocess.run(["du", "-s", "-B1", directory], capture_output=True, text=True, check=True).stdout.split()[0])


def test_a_model_that_fits_no_node(expected, tmp_path):
    """Each node may use less memory than the model needs, and fetches only what its layers are made of."""
    little = {"OPENGRID_LIMITS_MEMORY_MB": "272", "OPENGRID_SERVE_SLOTS": "2", "OPENGRID_SERVE_CONTEXT_TOKENS": "1024"}
    with Grid() as grid:
        gateway = grid.add("gateway")
        whole = grid.add("too-small", serve=MODEL, join=gateway, env=little)
        wait_until("it gave up", lambda: whole.status()["models"][0]["state"].startswith("failed"), 60)
        assert "bytes of memory" in whole.status()["models"][0]["state"]
        nodes = []
        for cut in CUTS:
            store = tmp_path / cut
            flags = ("--layers", cut)
            nodes.append(grid.add(f"stage-{cut}", serve=MODEL, join=gateway, env=little, options=flags, models_dir=store))
        for node in nodes:
            wait_until(f"{node.name} is ready", node.serves, 90)
            assert run("show", MODEL, "--path", "--home", str(node.home), env=node.env).returncode != 0
        pipelines.wait_for_stages(gateway, 3)
        size = next(row for row in rows_of(gateway.get("/grid/v1/models"), "models") if row["id"] == MODEL)["size_bytes"]
        # Chunks and slice of the middle stage together.
        assert disk_bytes(tmp_path / CUTS[1]) < size
        for subject, text in expected["greedy"].items():
            answer = pipelines.greedy(gateway, subject)
            assert answer.complete and answer.text == text, answer.error


def test_nodes_take_the_layers_that_the_grid_lacks(expected):
    """`--layers auto`: each takes what fits and nobody has; when one is lost for good, another takes its place."""
    little = {"OPENGRID_LIMITS_MEMORY_MB": "272", "OPENGRID_SERVE_SLOTS": "2", "OPENGRID_SERVE_CONTEXT_TOKENS": "1024"}
    with Grid() as grid:
        gateway = grid.add("gateway")
        auto = {"serve": MODEL, "join": gateway, "env": little, "options": ("--layers", "auto")}

        def coverage():
            rows = rows_of(gateway.get("/grid/v1/models"), "models")
            known = next(row for row in rows if row["id"] == MODEL)["coverage"]
            return known or {"stages": [], "gaps": ["all"]}

        for number in range(6):
            node = grid.add(f"auto-{number}", **auto)
            wait_until(f"{node.name} is ready", node.serves, 60)
            wait_until("it is known", lambda n=number: sum(len(s["holders"]) for s in coverage()["stages"]) == n + 1, 20)
            if not coverage()["gaps"]:
                break
        assert not coverage()["gaps"], coverage()
        subject, text = next(iter(expected["greedy"].items()))
        answer = pipelines.greedy(gateway, subject)
        assert answer.complete and answer.text == text, answer.error
        shown = run("ps", "--home", str(gateway.home), env=gateway.env)
        assert f"{MODEL} (30 layers)" in shown.stdout, shown
        # Its place is empty: the next one takes it.
        lost = grid.nodes[1].status()["models"][0]["layers"]
        grid.nodes[1].kill()
        wait_until("the gap is seen", lambda: lost in coverage()["gaps"], 20)
        late = grid.add("late", **auto)
        wait_until("it is ready", late.serves, 60)
        assert late.status()["models"][0]["layers"] == lost
        wait_until("no gap is left", lambda: not coverage()["gaps"], 20)


def test_a_draft_model_guesses_and_changes_no_text(expected):
    """The served model as its own: what it guesses comes true, at temperature 0 and above, through a fault, too."""
    with Grid() as grid:
        gateway = grid.add("gateway")
        one_thread = {"OPENGRID_SERVE_THREADS": "1"}
        first, *lasts = [
            grid.add(name, serve=MODEL, join=gateway, env=one_thread, options=("--layers", layers, *draft))
            for name, layers, draft in (
                ("first", "0..15", ()), ("last", "15..30", ("--draft", MODEL)), ("spare", "15..30", ("--draft", MODEL)))
        ]
        for node in (first, *lasts):
            wait_until(f"{node.name} is ready", node.serves, 60)
        pipelines.wait_for_stages(gateway, 3)
        for command in ("ps", "status"):
            shown = run(command, "--home", str(lasts[0].home), env=lasts[0].env)
            assert f"draft model {MODEL}" in shown.stdout and "no draft" not in shown.stdout, shown
        for kind, seed, changes in (("greedy", 1, {"temperature": 0}), ("sampled", 9, {})):
            for subject, text in list(expected[kind].items())[:2]:
                answer = pipelines.ask(gateway, subject, seed=seed, **changes)
                assert answer.complete and answer.text == text, answer.error
        counts = [sum(node.metrics()[f"opengrid_node_draft_model_{name}_total"] for node in lasts)
                  for name in ("guesses", "guesses_true")]
        print(f"{counts[1]:.0f} of {counts[0]:.0f} guesses came true")
        assert counts[0] >= 8 and counts[1] >= 0.9 * counts[0], counts
        _, fault = pipelines.fault_round(gateway, lasts, SUBJECTS[0], signal.SIGKILL, random.Random(5))
        assert fault.complete and fault.identical, fault


def test_a_draft_model_that_cannot_be_used_is_told():
    """Not at the last layers; and no memory beside them, where the layers are served all the same."""
    little = {"OPENGRID_LIMITS_MEMORY_MB": "272", "OPENGRID_SERVE_SLOTS": "2", "OPENGRID_SERVE_CONTEXT_TOKENS": "1024"}
    with Grid() as grid:
        gateway = grid.add("gateway")
        first = grid.add("first", serve=MODEL, join=gateway, options=("--layers", "0..10", "--draft", MODEL))
        wait_until("it gave up", lambda: first.status()["models"][0]["state"].startswith("failed"), 60)
        assert "leave out --draft" in first.status()["models"][0]["state"], first.status()
        last = grid.add("last", serve=MODEL, join=gateway, env=little, options=("--layers", "20..30", "--draft", MODEL))
        wait_until("it is ready", last.serves, 60)
        shown = run("ps", "--home", str(last.home), env=last.env)
        assert f"no draft model {MODEL}: " in shown.stdout and "memory are missing" in shown.stdout, shown
