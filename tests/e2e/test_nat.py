"""Two nodes behind different NATs find each other through a public third one, which serves nothing: an answer comes
over the relay at once, then directly where holes can be punched."""

import time

import pytest

import client
import lab
from grid import MODEL, rows_of, wait_until

FIRST_ANSWER_S = 5
# Three attempts of hole punching and the old path's grace.
UPGRADE_S = 20
# Longer than all attempts of hole punching take.
SYMMETRIC_S = 12
ANSWERS, TOKENS = 3, 24

reason = lab.why_not()
pytestmark = pytest.mark.skipif(bool(reason), reason=f"no NAT laboratory here: {reason}")


class Meeting:
    """P is public, B serves behind one NAT, A starts last behind another and has nothing, no vocabulary either."""

    def __init__(self, laboratory):
        self.laboratory = laboratory
        self.public = laboratory.add_at("p")
        with laboratory.place("p"):
            invite = self.public.invite()
        self.worker = laboratory.add_at("b", serve=MODEL, join=invite)
        with laboratory.place("b"):
            wait_until("the worker's model is ready", self.worker.serves, 40)
        empty = laboratory.directory / "empty"
        started = time.monotonic()
        self.gateway = laboratory.add_at("a", join=invite, models_dir=empty, wait=False)
        with laboratory.place("a"):
            wait_until("the first answer", lambda: self.ask(2).complete, FIRST_ANSWER_S)
            self.took_s = time.monotonic() - started
            self.gateway.wait_healthy()
        print(f"first answer {self.took_s:.2f} s after the gateway's start")

    def ask(self, tokens):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a long story."}],
                "max_tokens": tokens, "ignore_eos": True}
        answer = client.stream(self.gateway.url, "/v1/chat/completions", body)
        assert not answer.complete or answer.headers["x-opengrid-worker"] == self.worker.peer_id
        return answer

    def ask_all(self):
        """Some answers; all have to be complete."""
        with self.laboratory.place("a"):
            for _ in range(ANSWERS):
                answer = self.ask(TOKENS)
                assert answer.complete and answer.usage["completion_tokens"] == TOKENS, answer

    def path(self):
        """How the gateway sees its worker."""
        with self.laboratory.place("a"):
            rows = rows_of(self.gateway.peers(), "peers")
        return next((row["path"] for row in rows if row["peer_id"] == self.worker.peer_id), "none")

    def counters(self):
        with self.laboratory.place("p"):
            public = self.public.metrics()
        with self.laboratory.place("a"):
            gateway = self.gateway.metrics()
        streams = "opengrid_network_stream_bytes_total"
        return {
            "public": total(public, "opengrid_network_libp2p_bandwidth_bytes_total"),
            "circuits": total(public, "opengrid_network_relay_circuits"),
            "circuits ever": total(public, "opengrid_network_relay_circuits_opened_total"),
            "upgrades": total(gateway, "opengrid_network_upgrades_total"),
            "direct": total(gateway, streams, 'path="Direct"'),
            "relayed": total(gateway, streams, 'path="Relayed"'),
        }


def total(metrics, name, label=""):
    return sum(value for sample, value in metrics.items() if sample.split("{")[0] == name and label in sample)


def grown(meeting, action):
    before = meeting.counters()
    action()
    after = meeting.counters()
    print(f"before {before}\nafter  {after}")
    return {name: after[name] - before[name] for name in after}


def test_cone_nats_are_crossed_by_the_relay_and_then_directly():
    with lab.Laboratory("cone") as laboratory:
        meeting = Meeting(laboratory)
        assert meeting.counters()["circuits ever"] >= 1, "they met over the relay"
        wait_until("the path becomes direct", lambda: meeting.path() == "direct", UPGRADE_S)
        wait_until("the relay's circuits are closed", lambda: meeting.counters()["circuits"] == 0, UPGRADE_S)
        more = grown(meeting, meeting.ask_all)
        assert meeting.path() == "direct"
        assert meeting.counters()["upgrades"] >= 1
        assert more["direct"] > 0 and more["relayed"] == 0, more
        assert more["circuits ever"] == meeting.counters()["circuits"] == 0, "the public node relays nothing any more"


def test_symmetric_nats_stay_on_the_relay():
    with lab.Laboratory("symmetric") as laboratory:
        meeting = Meeting(laboratory)
        until = time.monotonic() + SYMMETRIC_S
        while time.monotonic() < until:
            assert meeting.path() == "relayed"
            time.sleep(0.25)
        more = grown(meeting, meeting.ask_all)
        assert meeting.path() == "relayed"
        # A few bytes go to the public node itself, whose beacons are asked for; the answers are thousands.
        assert more["direct"] < 500 < more["relayed"], more
        assert more["public"] > more["relayed"], "the relay counts what it carries"
