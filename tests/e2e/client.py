"""A plain HTTP and SSE client with a time stamp on every chunk, standard library only.

Sockets are read by hand: the benchmarks need the moment at which bytes arrive, without a library's buffering between.
"""

import json
import socket
import time
import urllib.parse
from dataclasses import dataclass, field

READ_BYTES = 64 * 1024


@dataclass
class Chunk:
    """One piece of streamed text; `at` is time.perf_counter() on arrival."""

    at: float
    text: str


@dataclass
class Answer:
    """What came back of one streamed request."""

    status: int = 0
    headers: dict = field(default_factory=dict)
    chunks: list = field(default_factory=list)
    usage: dict | None = None
    finish: str | None = None
    error: dict | None = None
    done: bool = False
    started: float = 0.0
    ended: float = 0.0

    @property
    def text(self):
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def complete(self):
        return self.status == 200 and self.done and self.error is None and self.finish is not None

    @property
    def first_token_s(self):
        return self.chunks[0].at - self.started

    @property
    def decode_tokens_per_s(self):
        """Tokens after the first, per second between the first and the last chunk."""
        return (self.usage["completion_tokens"] - 1) / (self.chunks[-1].at - self.chunks[0].at)

    def longest_gap_s(self, since):
        """The longest silence between two chunks of which the later one came after `since`."""
        pairs = zip(self.chunks, self.chunks[1:])
        return max((later.at - earlier.at for earlier, later in pairs if later.at >= since), default=0.0)


def request_bytes(url, method, path, body, headers):
    host = urllib.parse.urlsplit(url).netloc
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": host, "Connection": "close", "Accept": "*/*"}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(payload))}
    lines |= headers or {}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + payload


def connect(url, timeout_s):
    parts = urllib.parse.urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Body:
    """Undoes the chunked transfer coding, however the bytes are cut."""

    def __init__(self, chunked):
        self.chunked, self.buffer, self.left = chunked, b"", 0

    def push(self, data):
        if not self.chunked:
            return data
        self.buffer += data
        out = []
        while self.buffer:
            if self.left:
                piece, self.buffer = self.buffer[: self.left], self.buffer[self.left :]
                self.left -= len(piece)
                out.append(piece)
                continue
            line, found, rest = self.buffer.partition(b"\r\n")
            if not found:
                break
            self.buffer = rest
            if line:
                self.left = int(line.split(b";")[0], 16)
        return b"".join(out)


def read_head(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(READ_BYTES)
        if not piece:
            raise ConnectionError("the server closed the connection before it answered")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(first.split()[1]), headers, rest


def request(url, method, path, body=None, headers=None, timeout_s=60):
    """(status, headers, body bytes)."""
    with connect(url, timeout_s) as connection:
        connection.sendall(request_bytes(url, method, path, body, headers))
        status, head, rest = read_head(connection)
        decoder = Body("chunked" in head.get("transfer-encoding", ""))
        out = decoder.push(rest)
        while piece := connection.recv(READ_BYTES):
            out += decoder.push(piece)
    return status, head, out


def get_json(url, path, timeout_s=10, headers=None):
    status, _, body = request(url, "GET", path, headers=headers, timeout_s=timeout_s)
    if status != 200:
        raise RuntimeError(f"GET {path}: {status} {body[:200]!r}")
    return json.loads(body)


def stream(url, path, body, on_chunk=None, timeout_s=120, headers=None):
    """Posts `body` with streaming on and reads to the end. `on_chunk(answer)` runs after each piece of text."""
    answer = Answer()
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    with connect(url, timeout_s) as connection:
        answer.started = time.perf_counter()
        connection.sendall(request_bytes(url, "POST", path, body, headers))
        answer.status, answer.headers, rest = read_head(connection)
        decoder = Body("chunked" in answer.headers.get("transfer-encoding", ""))
        pending, data = b"", rest
        while True:
            now = time.perf_counter()
            pending += decoder.push(data)
            *lines, pending = pending.split(b"\n")
            for line in lines:
                take_line(answer, line.rstrip(b"\r"), now, on_chunk)
            data = connection.recv(READ_BYTES)
            if not data:
                break
    if answer.status != 200 and pending:
        take_line(answer, b"data: " + pending, time.perf_counter(), on_chunk)
    answer.ended = time.perf_counter()
    return answer


def take_line(answer, line, now, on_chunk):
    if answer.status != 200 and line.startswith(b"{"):
        line = b"data: " + line
    if not line.startswith(b"data:"):
        return
    data = line[5:].strip()
    if data == b"[DONE]":
        answer.done = True
        return
    event = json.loads(data)
    if "error" in event:
        answer.error = event["error"]
        return
    answer.usage = event.get("usage") or answer.usage
    for choice in event.get("choices", []):
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        answer.finish = choice.get("finish_reason") or answer.finish
        if text:
            answer.chunks.append(Chunk(now, text))
            if on_chunk:
                on_chunk(answer)
