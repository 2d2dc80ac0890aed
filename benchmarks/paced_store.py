"""A bucket on loopback behind a link of one's choice: time to first byte, and bytes a second over all connections.

    python benchmarks/paced_store.py FOLDER --delay-ms 20 --megabits 1000

Answers HEAD and ranged GET of `/BUCKET/NAME` with the files of FOLDER, and looks at no signature. The bytes go from the page
cache to the socket without passing through this process, because on a real cluster the store does not share the loader's
cores. It prints its port, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLICE = 256 << 10


class Link:
    """A line that all connections share: each takes its turn, and waits until its bytes would have passed."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate, self._free, self._lock = bytes_per_second, 0.0, threading.Lock()

    def carry(self, count: int) -> None:
        """Return when `count` more bytes have passed."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._rate
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))


class Store(ThreadingHTTPServer):
    """Serves the files of a folder."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, delay_seconds: float, bytes_per_second: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.delay, self.link = folder, delay_seconds, Link(bytes_per_second)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""

    def _answer(self, body: bool) -> None:
        path = self.server.folder / self.path.split("?")[0].rsplit("/", 1)[-1]
        time.sleep(self.server.delay)
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert wanted is not None
        start, stop = int(wanted[1]), min(size, int(wanted[2] or size) + 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("ETag", f'"{path.name}-{size}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.flush()
            self._send(path, start, stop)

    def _send(self, path: Path, start: int, stop: int) -> None:
        with open(path, "rb") as stream:
            while start < stop:
                count = min(SLICE, stop - start)
                self.server.link.carry(count)
                sent = os.sendfile(self.connection.fileno(), stream.fileno(), start, count)
                start += sent

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)


def main() -> None:
    """Serve until ended from outside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--megabits", type=float, default=1000.0)
    given = parser.parse_args()
    store = Store(given.folder, given.delay_ms / 1e3, given.megabits * 1e6 / 8)
    store.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    print(store.server_address[1], flush=True)
    store.serve_forever()


if __name__ == "__main__":
    main()
