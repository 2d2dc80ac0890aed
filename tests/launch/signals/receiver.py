"""A receiver of events on this machine, that answers as a test wants it to."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it was sent; `status` is what it answers, `delay` the seconds before each byte of its body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[str, Mapping[str, str], bytes]] = []
        self.status, self.delay, self.location = 204, 0.0, ""

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.server_address[1]}/hook?a=1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        if self.server.delay:
            # A status line that comes byte by byte: each is in time for the socket's own limit.
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK":
                    self.wfile.write(bytes([byte]))
                    time.sleep(self.server.delay)
            return
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *parts: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver at work."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join(5)
