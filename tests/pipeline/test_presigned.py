"""Ranges by signed address from a server that speaks just enough S3: what is right comes at once, the rest is left to s3fs."""

from __future__ import annotations

import http.client
import logging
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from pipeline import presigned
from pipeline.addresses import filesystem
from pipeline.remote import fetch_range

CONTENT = random.Random(5).randbytes(300_000)
URI = "s3://bucket/a folder/x.tar"


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `faults` are used up, one a request. `signed` and `headed` count the two ways of signing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.signed, self.headed, self.connections = list[str](), list[str](), set[int]()

    def finish_request(self, request: object, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self.connections.add(client_address[1])
        super().finish_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """The client has given up: that is what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        by_address = "X-Amz-Signature=" in self.path
        (self.server.signed if by_address else self.server.headed).append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults and by_address else ""
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        body = CONTENT[int(first) : int(last) + 1]
        if fault.isdigit():
            self.send_error(int(fault))
            self.close_connection = True
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.end_headers()
        if fault == "drip":
            for place in range(20):
                self.wfile.write(body[place : place + 1])
                time.sleep(0.1)
        self.wfile.write(body[: len(body) // 2] if fault == "short" else body)
        self.close_connection = bool(fault)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{found.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        fsspec.filesystem("s3").clear_instance_cache()
        presigned._forget()
        yield found
        presigned._connections.close()
        fsspec.filesystem("s3").clear_instance_cache()
        found.shutdown()


def fetch(start: int, stop: int, *, attempt: float = 5.0, deadline: float = 20.0) -> bytes:
    return bytes(fetch_range(URI, start, stop, attempt_seconds=attempt, deadline_seconds=deadline))


def test_ranges_come_by_one_signature_over_one_connection(server: Server) -> None:
    for start, stop in ((0, 1), (5, 5000), (0, len(CONTENT)), (len(CONTENT) - 7, len(CONTENT))):
        assert fetch(start, stop) == CONTENT[start:stop]
    assert len(set(server.signed)) == 1 and len(server.signed) == 4 and not server.headed
    assert server.signed[0].startswith("/bucket/a%20folder/x.tar?")
    assert len(server.connections) == 1


@pytest.mark.parametrize("fault", ["503", "429", "short", "drip"])
def test_what_passes_is_tried_again(server: Server, fault: str) -> None:
    server.faults = [fault]
    assert fetch(100, 9000, attempt=1.0) == CONTENT[100:9000]
    assert len(server.signed) == 2 and not server.headed


def test_a_server_that_drips_is_given_up_in_time(server: Server) -> None:
    fetch(0, 1)  # the first signature takes longer than the limit below on a busy machine
    server.faults = ["drip"]
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.5 s|timed out"):
        presigned.read_range(URI, 0, 1000, seconds=0.5)
    assert time.monotonic() - began < 5


def test_a_store_that_stumbles_is_asked_by_s3fs_this_once(server: Server) -> None:
    server.faults = ["500"]
    assert fetch(0, 50) == CONTENT[:50]
    assert fetch(50, 99) == CONTENT[50:99]
    assert (len(server.signed), len(server.headed)) == (2, 1)


@pytest.mark.parametrize("fault", ["400", "403", "307"])
def test_a_refused_signature_leaves_the_object_to_s3fs(server: Server, fault: str) -> None:
    server.faults = [fault]
    assert fetch(0, 50) == CONTENT[:50]
    assert fetch(50, 99) == CONTENT[50:99]
    assert (len(server.signed), len(server.headed)) == (1, 2)


@pytest.mark.parametrize(
    "special", [{"requester_pays": True}, {"client_kwargs": {"verify": False}}, {"config_kwargs": {"proxies": {"http": "x"}}}]
)
def test_what_a_signature_cannot_say_is_left_to_s3fs(server: Server, monkeypatch: pytest.MonkeyPatch, special: dict) -> None:
    monkeypatch.setattr(presigned, "filesystem", lambda uri: (fsspec.filesystem("s3", **special), filesystem(uri)[1]))
    assert presigned.read_range(URI, 0, 50, seconds=5) is None
    assert not server.signed and not server.headed


def test_a_proxy_in_the_environment_is_left_to_s3fs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert presigned.read_range(URI, 0, 50, seconds=5) is None
    assert not server.signed


def test_without_credentials_s3fs_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    fsspec.filesystem("s3").clear_instance_cache()
    assert presigned.read_range(URI, 0, 50, seconds=5) is None


def test_no_message_shows_the_signature(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pipeline")
    fetch(0, 1)  # the first signature takes longer than the limit below on a busy machine
    seen = []
    for fault in ("503", "short", "drip"):
        server.faults = [fault]
        with pytest.raises((OSError, http.client.HTTPException)) as caught:
            presigned.read_range(URI, 0, 1000, seconds=0.5)
        seen.append(str(caught.value))
    assert not any("Signature" in text or "Credential" in text for text in (*seen, caplog.text))


def test_a_forked_process_opens_connections_of_its_own(server: Server) -> None:
    fetch(0, 10)
    before = presigned._connections
    presigned._forget()  # what a fork does in the child
    assert presigned._connections is not before
    assert fetch(10, 20) == CONTENT[10:20]
    assert len(server.connections) == 2
    before.close()
