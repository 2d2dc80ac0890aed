"""Ranges of S3 objects over plain HTTP: s3fs signs an address, and the body goes from the socket into one buffer.

Beside threads that decode, a body that passes through the event loop of s3fs costs two to four times the processor time of one
that does not, and the decoders wait for it. So it only signs, once for many requests. Whatever is unusual (an answer that is
not the range, a proxy, own certificates, encryption by the customer's key) is left to s3fs, whose errors are the ones that are
translated.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from fsspec.asyn import sync

from pipeline.addresses import CONNECT_SECONDS, CONNECTIONS, filesystem

__all__ = ["read_range"]

EXPIRES_SECONDS = 3600
SIGN_AGAIN_SECONDS = 1800.0
ADDRESSES_KEPT = 100_000
BUSY = (429, 502, 503, 504)
FAILED = 500
"""Of a store that may have stumbled over the way of signing: s3fs tries its own."""


class _Addresses:
    """Signed addresses. They are secrets: nothing else may see them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, float, SplitResult | None]] = {}
        self._lock = threading.Lock()

    def get(self, uri: str, seconds: float) -> SplitResult | None:
        """The signed address; None where s3fs must do the reading."""
        fs, path = filesystem(uri)
        with self._lock:
            signer, until, address = self._known.get(uri, (None, 0.0, None))
        if signer is fs and time.monotonic() < until:  # other credentials have another file system
            return address
        address = None if _is_unusual(fs) else urlsplit(sync(fs.loop, fs._url, path, expires=EXPIRES_SECONDS, timeout=seconds))
        if address is not None and _is_proxied(address):
            address = None
        self._keep(uri, fs, address)
        return address

    def _keep(self, uri: str, fs: Any, address: SplitResult | None) -> None:
        with self._lock:
            if len(self._known) >= ADDRESSES_KEPT:
                self._known.clear()
            self._known[uri] = (fs, time.monotonic() + SIGN_AGAIN_SECONDS, address)

    def give_up(self, uri: str) -> None:
        """Leave the object to s3fs for a while."""
        self._keep(uri, filesystem(uri)[0], None)


def _is_unusual(fs: Any) -> bool:
    """Whether requests need more than a signed address."""
    special = ("verify", "cert", "proxies")
    settings = {**(fs.config_kwargs or {}), **(fs.client_kwargs or {})}
    asks = any(settings.get(name) is not None for name in special)
    return bool(asks or fs.req_kw or fs.s3_additional_kwargs or fs.version_aware)


def _is_proxied(address: SplitResult) -> bool:
    return address.scheme in getproxies() and not proxy_bypass(address.hostname or "")


class _Connections:
    """Open connections by host, which are used again while all goes well."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def _open(self, address: SplitResult) -> http.client.HTTPConnection:
        if address.scheme == "http":
            return http.client.HTTPConnection(address.netloc, timeout=CONNECT_SECONDS)
        self._tls = self._tls or ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
        return http.client.HTTPSConnection(address.netloc, timeout=CONNECT_SECONDS, context=self._tls)

    @contextlib.contextmanager
    def lent(self, address: SplitResult) -> Iterator[http.client.HTTPConnection]:
        """A connection; it is kept if the body ends well and the server agrees, and closed otherwise."""
        key = (address.scheme, address.netloc)
        with self._lock:
            idle = self._idle.setdefault(key, [])
            connection = idle.pop() if idle else self._open(address)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if connection.sock is not None and len(self._idle[key]) < CONNECTIONS:
                self._idle[key].append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all that are not in use."""
        with self._lock:
            for idle in self._idle.values():
                while idle:
                    idle.pop().close()


_addresses, _connections = _Addresses(), _Connections()


def _forget() -> None:
    """A forked process must not speak on its parent's connections."""
    global _addresses, _connections
    _addresses, _connections = _Addresses(), _Connections()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _close() -> None:
    _connections.close()


def read_range(uri: str, start: int, stop: int, *, seconds: float) -> bytearray | None:
    """Bytes `start` to `stop` of an S3 object; None where s3fs must be asked instead, also for what is wrong.

    Args:
        seconds: time limit of the whole request.

    Raises:
        TimeoutError: no answer, or not the whole of it, by then.
        OSError, http.client.HTTPException: the connection failed.
    """
    ends = time.monotonic() + seconds
    try:
        address = _addresses.get(uri, seconds)
    except Exception:  # no credentials, no bucket, no such endpoint: s3fs says so
        return None
    if address is None:
        return None
    with _connections.lent(address) as connection:
        _limit(connection, ends, seconds)
        target = f"{address.path}?{address.query}" if address.query else address.path
        try:
            connection.request("GET", target, headers={"Range": f"bytes={start}-{stop - 1}"})
        except ssl.SSLCertVerificationError:
            _addresses.give_up(uri)
            return None
        _limit(connection, ends, seconds)
        with connection.getresponse() as response:
            if response.status == http.client.PARTIAL_CONTENT and response.length == stop - start:
                return _body(response, connection, stop - start, ends, seconds)
            connection.close()
            if response.status in BUSY:
                raise ConnectionError(f"the store answered {response.status} {response.reason}")
            if response.status != FAILED:
                _addresses.give_up(uri)
            return None


def _body(
    response: http.client.HTTPResponse, connection: http.client.HTTPConnection, size: int, ends: float, limit: float
) -> bytearray:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        _limit(connection, ends, limit)
        # One read of the socket at a time: a server that drips must not hold us beyond the limit.
        count = response.fp.readinto1(view[filled:])
        if not count:
            raise ConnectionError(f"{filled} of {size} bytes came")
        filled += count
    return buffer


def _limit(connection: http.client.HTTPConnection, ends: float, limit: float) -> None:
    """Let the next wait for the network end with the request's time."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"no answer within {limit:g} s")
    if connection.sock is None:
        connection.timeout = min(CONNECT_SECONDS, left)
    else:
        connection.sock.settimeout(left)
