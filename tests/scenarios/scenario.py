"""A row of the table: one request, and how our answer may differ from llama-server's, with the reason."""

import json
from dataclasses import dataclass, field

import client
from grid import MODEL
from shape import differences, is_error, reduced


@dataclass(frozen=True)
class Scenario:
    name: str
    path: str
    # An object becomes JSON, bytes go as they are.
    body: dict | bytes | None = None
    method: str = "POST"
    headers: dict = field(default_factory=dict)
    # Difference (a line of `shape.differences`, or how it begins and `*`) -> why. One that no longer occurs fails, as does
    # one that is not listed.
    differs: dict = field(default_factory=dict)
    # Greedy, so the text must be the oracle's.
    text: bool = False
    # Which oracle answers: "chat", "tools" (with a template that knows tools, so prompts differ) or "embedding".
    oracle: str = "chat"

    def ask(self, url):
        """The reduced answer of the server at `url`."""
        body = json.dumps(self.body).encode() if isinstance(self.body, dict) else self.body
        status, headers, answer = client.request(url, self.method, self.path, body, self.headers, timeout_s=120)
        return reduced(status, headers, answer, self.text, self.oracle != "tools")

    def judge(self, ours, theirs):
        """What is wrong: differences without a reason, and reasons without a difference."""
        found = differences(ours, theirs)
        unknown = [line for line in found if not any(covers(listed, line) for listed in self.differs)]
        gone = [listed for listed in self.differs if not any(covers(listed, line) for line in found)]
        wrong = [f"differs without a listed reason: {line}" for line in unknown]
        wrong += [f"listed, but does not differ: {listed}" for listed in gone]
        if ours["status"] >= 400 and not is_error(ours, anthropic=self.path == "/v1/messages"):
            wrong.append("our error is not of the API's shape")
        return wrong


def covers(listed, line):
    return line.startswith(listed[:-1]) if listed.endswith("*") else line == listed


def user(text):
    return [{"role": "user", "content": text}]


def greedy(**fields):
    """A body that both servers answer with the same tokens."""
    return {"model": MODEL, "temperature": 0, "max_tokens": 16} | fields
