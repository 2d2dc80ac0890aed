"""A proxy between a client and a store that speaks HTTP/1.1, and does to the answers what networks and busy stores do.

Whether a request meets a fault, and which, is a function of the seed, of what is asked for, and of how often it was
asked for before: so a schedule is the same however threads take their turns. Requests pass unchanged, the host's name
too, because it is part of what the client signed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO
from urllib.parse import urlsplit

from tests.support.servers import HOST

FAULTS = ("busy", "slow", "reset", "short", "silent", "corrupt")
"""503 with S3's SlowDown · a body that trickles · a connection reset · half a body · no answer · one wrong byte."""
BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message><RequestId>busy</RequestId></Error>"
)
TRICKLES = 20
LINGER_NONE = struct.pack("ii", 1, 0)
"""A socket that is closed so sends a reset."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """Bucket and key."""
        return self.target.partition("?")[0]

    @property
    def key(self) -> str:
        """The path without the bucket: tests number their buckets, and a schedule must not depend on that."""
        return self.path.lstrip("/").partition("/")[2]

    @property
    def query(self) -> tuple[str, ...]:
        """What is asked of them, without the signature, which differs from time to time."""
        parts = self.target.partition("?")[2].split("&")
        return tuple(part for part in parts if part and not part.startswith(("X-Amz-", "x-id=")))

    @property
    def is_object(self) -> bool:
        """Whether the bytes of a stored object are asked for, or brought; not a listing, and no call beside that."""
        plain = not self.query or any(part.startswith("partNumber=") for part in self.query)
        return self.method in ("GET", "PUT") and self.path.count("/") > 1 and plain


@dataclasses.dataclass(frozen=True)
class Weather:
    """What goes wrong.

    faults: the kinds, each as likely as the others · share: of requests that meet one · most: how often one request meets a
    fault, then it passes · silence, trickle: how long a silent and a slow answer take, in seconds · only: requests that may
    meet one
    """

    faults: Sequence[str] = ()
    share: float = 1.0
    most: float = 2
    seed: int = 0
    silence: float = 1.0
    trickle: float = 0.3
    only: Callable[[Request], bool] = lambda request: True


QUIET = Weather()
FOREVER = math.inf


class FaultProxy(socketserver.ThreadingTCPServer):
    """Stands before a store. `weather` may be changed at any time; `done` counts the faults that happened, by kind."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, store: str) -> None:
        super().__init__((HOST, 0), _Connection)
        self.endpoint = f"http://{HOST}:{self.server_address[1]}"
        where = urlsplit(store)
        assert where.hostname and where.port
        self.store = (where.hostname, where.port)
        self.weather = QUIET
        self.passed = 0
        self.done: collections.Counter[str] = collections.Counter()
        self._asked: collections.Counter[tuple[object, ...]] = collections.Counter()
        self._lock = threading.Lock()
        self.closing = threading.Event()

    def set(self, weather: Weather) -> None:
        """Begin anew with this weather."""
        with self._lock:
            self.weather, self.passed = weather, 0
            self.done.clear()
            self._asked.clear()

    def fate(self, request: Request) -> tuple[str, int]:
        """The fault that a request meets, empty for none, and a number of 24 bits that says where."""
        weather = self.weather
        if not weather.faults or not weather.only(request):
            return "", 0
        asked = (request.method, request.key, request.query, request.headers.get("range", ""))
        with self._lock:
            self._asked[asked] += 1
            turn = self._asked[asked]
        mark = hashlib.sha256(repr((weather.seed, asked, turn)).encode()).digest()
        if turn > weather.most or int.from_bytes(mark[:3], "big") >= weather.share * 2**24:
            return "", 0
        fault = weather.faults[mark[3] % len(weather.faults)]
        return ("" if fault == "corrupt" and not request.is_object else fault), int.from_bytes(mark[4:7], "big")

    def count(self, fault: str) -> None:
        """Note that it happened."""
        with self._lock:
            if fault:
                self.done[fault] += 1
            else:
                self.passed += 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are what this is for."""


class _Connection(socketserver.StreamRequestHandler):
    server: FaultProxy

    def handle(self) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            store = stack.enter_context(socket.create_connection(self.server.store, timeout=120))
            answers = stack.enter_context(store.makefile("rb"))
            while self._exchange(store, answers):
                pass

    def _exchange(self, store: socket.socket, answers: IO[bytes]) -> bool:
        """One request and its answer; returns whether the connection goes on."""
        line, head, headers = _read_head(self.rfile)
        if not line:
            return False
        method, target, _ = line.split(" ", 2)
        request = Request(method, target, headers)
        if headers.pop("expect", ""):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(part for part in head.split(b"\r\n") if not part.lower().startswith(b"expect:"))
        body = _read_body(self.rfile, headers)
        fault, where = self.server.fate(request)
        if fault == "busy":
            self.server.count(fault)
            start = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(BUSY)}\r\n\r\n"
            self.wfile.write(start.encode() + (BUSY if method != "HEAD" else b""))
            return True
        if fault in ("reset", "silent"):
            self.server.count(fault)
            if fault == "silent":
                self.server.closing.wait(self.server.weather.silence)
            else:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            return False
        if fault == "corrupt" and method == "PUT":
            body = self._spoilt(body, where, headers)
        store.sendall(head + body)
        line, head, headers = _read_head(answers)
        while line.split(" ", 2)[1:2] == ["100"]:
            line, head, headers = _read_head(answers)
        status = int(line.split(" ", 2)[1]) if line else 0
        body = b"" if method == "HEAD" or status in (204, 304) else _read_body(answers, headers, to_end=True)
        return self._answer(fault, where, method, head, headers, body)

    def _answer(self, fault: str, where: int, method: str, head: bytes, headers: Mapping[str, str], body: bytes) -> bool:
        if fault == "short" and len(body) > 1:
            self.server.count(fault)
            self.wfile.write(head + body[: len(body) // 2])
            return False
        if fault == "slow" and body:
            self.server.count(fault)
            self.wfile.write(head)
            size = -(-len(body) // TRICKLES)
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                self.server.closing.wait(self.server.weather.trickle / TRICKLES)
        else:
            if fault == "corrupt" and method == "GET":
                body = self._spoilt(body, where, headers)
            elif not fault:
                self.server.count("")
            self.wfile.write(head + body)
        return headers.get("connection", "").lower() != "close" and ("content-length" in headers or method == "HEAD" or not body)

    def _spoilt(self, body: bytes, where: int, headers: Mapping[str, str]) -> bytes:
        """The body with one bit of one byte turned."""
        if not body or "transfer-encoding" in headers or headers.get("content-type", "").endswith("xml"):
            return body
        self.server.count("corrupt")
        place = where % len(body)
        return body[:place] + bytes([body[place] ^ 1 << where % 7]) + body[place + 1 :]


def _read_head(stream: IO[bytes]) -> tuple[str, bytes, dict[str, str]]:
    """First line, all bytes, and headers by small names; empty where the other side has closed."""
    lines = [stream.readline()]
    while lines[-1] not in (b"\r\n", b""):
        lines.append(stream.readline())
    if not lines[-1]:
        return "", b"", {}
    pairs = (line.decode("latin-1").partition(":") for line in lines[1:-1])
    return lines[0].decode("latin-1").strip(), b"".join(lines), {name.lower(): value.strip() for name, _, value in pairs}


def _read_body(stream: IO[bytes], headers: Mapping[str, str], *, to_end: bool = False) -> bytes:
    """The body as it is on the wire, chunks with their sizes."""
    if "chunked" in headers.get("transfer-encoding", ""):
        parts = []
        while True:
            parts.append(stream.readline())
            size = int(parts[-1].split(b";")[0], 16)
            parts.append(stream.read(size + 2))
            if not size:
                return b"".join(parts)
    if "content-length" in headers:
        return stream.read(int(headers["content-length"]))
    return stream.read() if to_end else b""


@contextlib.contextmanager
def fault_proxy(store: str) -> Iterator[FaultProxy]:
    """A proxy before the store at an endpoint, at work while the body runs."""
    with FaultProxy(store) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            proxy.shutdown()
            thread.join()
