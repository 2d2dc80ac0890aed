"""Ranges from a real HTTP server that fails in every way: the right bytes, or a named error; never something between."""

from __future__ import annotations

import io
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import remote
from pipeline.errors import IntegrityError, StorageError
from pipeline.remote import RemoteFile, ask, fetch_range

CONTENT = random.Random(3).randbytes(100_000)


class Server(ThreadingHTTPServer):
    """Serves CONTENT with ranges; `faults` are used up, one a GET request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.ranges: list[tuple[int, int]] = []
        self.uri = f"http://127.0.0.1:{self.server_address[1]}/x.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else ""
        wanted = self.headers.get("Range", "bytes=0-")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last or len(CONTENT) - 1) + 1
        self.server.ranges.append((start, stop))
        body = CONTENT[start:stop]
        if fault == "busy":
            self.send_error(503)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        elif not body:
            self.send_error(416)
        else:
            if fault == "silent":
                time.sleep(3)
            self.send_response(206)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(CONTENT)}")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "short" else body)
        self.close_connection = fault in ("reset", "short", "silent")

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            """The client has given up, as it should."""

    def log_message(self, *arguments: object) -> None:
        """Not on the test's output."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def fetch(server: Server, start: int, stop: int, deadline: float = 10) -> bytes:
    return fetch_range(server.uri, start, stop, attempt_seconds=0.5, deadline_seconds=deadline)


@pytest.mark.parametrize("fault", ["", "busy", "reset", "short", "silent"])
def test_a_range_comes_whole_whatever_happens_on_the_way(server: Server, fault: str) -> None:
    server.faults = [fault] * 2 if fault else []
    assert fetch(server, 1000, 5000) == CONTENT[1000:5000]
    assert server.ranges == [(1000, 5000)] * (3 if fault else 1)


@pytest.mark.parametrize("fault", ["busy", "reset", "short", "silent"])
def test_a_store_that_stays_away_is_named_at_the_deadline(server: Server, fault: str) -> None:
    server.faults = [fault] * 1000
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"x\.bin: bytes 0 to 10: failed for 1 s"):
        fetch(server, 0, 10, deadline=1)
    assert time.monotonic() - began < 10


def test_an_object_that_is_too_short_is_said_so_without_waiting(server: Server) -> None:
    began = time.monotonic()
    for start in (len(CONTENT) - 5, len(CONTENT) + 5):
        with pytest.raises(IntegrityError, match="the object has 100000 bytes; byte 100009 was asked for"):
            fetch(server, start, len(CONTENT) + 10, deadline=60)
    assert time.monotonic() - began < 10


def test_a_file_reads_as_its_bytes_in_any_order(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 7_000)
    source, generator = io.BytesIO(CONTENT), random.Random(1)
    with io.BufferedReader(RemoteFile(server.uri), 512) as stream:
        for _ in range(60):
            if generator.random() < 0.3:
                place = generator.randrange(-10, len(CONTENT) + 100)
                where = (
                    (max(0, place), io.SEEK_SET)
                    if generator.random() < 0.7
                    else (-min(place, 50) if place > 0 else 0, io.SEEK_END)
                )
                assert stream.seek(*where) == source.seek(*where)
            count = generator.choice([0, 1, 100, 6_999, 7_001, 30_000])
            assert stream.read(count) == source.read(count)
            assert stream.tell() == source.tell()


def test_read_in_sequence_every_block_is_fetched_once_and_ahead(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 10_000)
    raw = RemoteFile(server.uri)
    first = bytearray(10)
    assert raw.readinto(first) == 10
    for _ in range(100):
        if len(server.ranges) == 2:
            break
        time.sleep(0.02)
    assert sorted(server.ranges) == [(0, 10_000), (10_000, 20_000)]  # the second was not asked for yet
    server.faults = ["reset", "", "short"]
    with io.BufferedReader(raw, 512) as stream:
        assert bytes(first) + stream.read() == CONTENT
        assert len(raw._blocks) <= 2
    assert set(server.ranges) == {(start, start + 10_000) for start in range(0, 100_000, 10_000)}
    assert len(server.ranges) == 12


def test_an_address_that_the_client_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def useless(*arguments: object, **named: object) -> None:
        raise ValueError("Invalid endpoint: nonsense")

    monkeypatch.setattr(remote, "once", useless)
    with pytest.raises(StorageError, match="Invalid endpoint"):
        ask("s3://bucket/x", "info")
