"""Webhooks: an event POSTed as JSON and signed as Standard Webhooks has it, so that receivers find a library for it.

Headers `webhook-id`, `webhook-timestamp`, `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`. A
receiver drops an id that it knows, and a timestamp that is minutes old. Redirects are not followed, proxies not used.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from launch.signals.outbox import Item, Undelivered
from pipeline.errors import ConfigError

__all__ = ["check_url", "post", "read_secret", "sign", "signed_headers"]

LIMIT_SECONDS = 10.0
SHORTEST_SECRET = 24
"""Bytes, as Standard Webhooks asks for."""
PREFIX = "whsec_"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: str, where: str) -> None:
    """Refuse an address that events must not be sent to.

    Args:
        url: `https://...`; `http` for this machine alone.
        where: the setting, for messages, which never quote the address.

    Raises:
        ConfigError: another scheme, no host, or a user or password in it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(f"{where}: not an address", "write https://HOST/PATH") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: a user or password is in the address", "leave it out: events are signed")
    if not host or any(mark <= " " for mark in url):
        raise ConfigError(f"{where}: not an address", "write https://HOST/PATH")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ConfigError(f"{where}: not https", "write https://HOST/PATH; http is for this machine alone")


def read_secret(file: str, text: str) -> bytes:
    """The secret that events are signed with, from a file or as a text; `whsec_` and base64, or any other text.

    Raises:
        ConfigError: none is there, or it is too short.
    """
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError("UNLEARN_WEBHOOK_SECRET_FILE: cannot be read", "name a file with the secret") from None
    text = text.strip()
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else text.encode()
    except binascii.Error:
        raise ConfigError("the webhook's secret: begins with whsec_ and is no base64", "copy it again") from None
    if len(secret) < SHORTEST_SECRET:
        cure = "put 32 random bytes into a file: openssl rand -base64 32; and name it: UNLEARN_WEBHOOK_SECRET_FILE"
        raise ConfigError(f"the webhook's secret: missing, or shorter than {SHORTEST_SECRET} bytes", cure)
    return secret


def sign(secret: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    """The signature of an event, as the header has it."""
    mac = hmac.new(secret, b".".join((event_id.encode(), timestamp.encode(), body)), hashlib.sha256)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"


def signed_headers(secret: bytes, item: Item, now: float) -> dict[str, str]:
    """The headers that name and sign an item at this time, in seconds since 1970."""
    stamp = str(int(now))
    signature = sign(secret, item.event_id, stamp, item.body.encode())
    return {"webhook-id": item.event_id, "webhook-timestamp": stamp, "webhook-signature": signature}


def post(url: str, item: Item, headers: Mapping[str, str], *, limit: float = LIMIT_SECONDS) -> None:
    """POST an item's body as JSON.

    Args:
        url: as `check_url` let it pass.
        item: what is sent.
        headers: beside those of the content.
        limit: seconds for all of it, whatever the receiver does.

    Raises:
        Undelivered: it was not taken with 2xx in that time.
    """
    parts = urlsplit(url)
    host, target = str(parts.hostname), f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    if parts.scheme == "https":
        secure = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, parts.port, timeout=limit, context=secure)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=limit)
    # The socket's own limit begins anew with each byte that a slow receiver sends.
    end = threading.Timer(limit, _cut, [connection])
    end.daemon = True
    end.start()
    try:
        content = {"Content-Type": "application/json", "User-Agent": "i2i-unlearn"}
        connection.request("POST", target, item.body.encode(), {**content, **headers})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as fault:
        raise Undelivered(type(fault).__name__) from None
    finally:
        end.cancel()
        connection.close()
    if not 200 <= status < 300:
        raise Undelivered(f"status {status}")


def _cut(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(2)


def deliver_to(url: str, secret: bytes | None, item: Item) -> None:
    """POST an item now, signed where there is a secret. Raises Undelivered."""
    post(url, item, signed_headers(secret, item, time.time()) if secret else {})


def environment_secret() -> tuple[str, str]:
    """The file that holds the secret, and the secret itself, as the environment names them."""
    return os.environ.get("UNLEARN_WEBHOOK_SECRET_FILE", ""), os.environ.get("UNLEARN_WEBHOOK_SECRET", "")
