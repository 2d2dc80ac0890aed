"""Who may read the page: by host, and by token where it is not for this machine alone; and headers that bind the browser."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from launch.signals.webhooks import is_loopback
from pipeline.errors import ConfigError

__all__ = ["COOKIE", "Guard", "read_token"]

COOKIE = "unlearn_session"
SHORTEST_TOKEN = 16
LONGEST_FORM = 4096
SESSION_SECONDS = 12 * 3600
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def read_token(file: str, text: str, host: str) -> str:
    """The token that readers must bring; empty where none is needed.

    Args:
        file: that holds it; empty: none.
        text: the token itself, from the environment; empty: none.
        host: address that the server binds; any but this machine's own needs a token.

    Raises:
        ConfigError: it is needed and not there, cannot be read, or is too short.
    """
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError("--token-file: cannot be read", "name a file with the token") from None
    token = text.strip()
    cure = "put one into a file: openssl rand -hex 24 > token; and name it with --token-file, or set UNLEARN_SERVE_TOKEN"
    if not token and (file or not is_loopback(host)):
        raise ConfigError(f"--host {host}: a token is needed where others can reach the page", cure)
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or any(mark <= " " for mark in token)):
        raise ConfigError(f"the token is not at least {SHORTEST_TOKEN} plain characters long", cure)
    return token


class Guard:
    """Around the application: refuses foreign Host headers, methods that write and readers without token; sets the headers.

    Args:
        app: what it guards.
        token: empty: readers need none.
        names: host names that the page is reached by. Addresses in figures need no name: no foreign domain can stand for one.
        login: makes the sign-in page; true after a wrong token.
    """

    def __init__(self, app: App, *, token: str, names: frozenset[str], login: Callable[[bool], str]) -> None:
        self._app, self._names, self._login = app, names, login
        self._token = token.encode()
        # Not the token itself, and of no use after the server ends.
        self._session = hmac.new(self._token, secrets.token_bytes(32), hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Anything but HTTP is closed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_headers(message.get("headers", []))
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if not self._is_own(headers.get("host", "")):
            await _answer(guarded, 421, "This is not the server of that name.\n")
        elif self._token and path == "/login" and method in ("GET", "HEAD", "POST"):
            await self._sign_in(method, receive, guarded)
        elif method not in ("GET", "HEAD"):
            await _answer(guarded, 405, "This page is read only.\n", [(b"allow", b"GET, HEAD")])
        elif self._token and not path.startswith("/static/") and not self._is_let_in(headers):
            if "text/html" in headers.get("accept", ""):
                await _answer(guarded, 303, "", [(b"location", b"/login")])
            else:
                await _answer(guarded, 401, "A token is needed.\n", [(b"www-authenticate", b"Bearer")])
        else:
            # Everything that answers GET answers HEAD.
            await self._app({**scope, "method": "GET"}, receive, guarded)

    def _is_own(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower().rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    def _is_let_in(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._session.encode())

    async def _sign_in(self, method: str, receive: Receive, send: Send) -> None:
        if method != "POST":
            await _answer(send, 200, self._login(False), kind="text/html")
            return
        body, more = b"", True
        while more and len(body) <= LONGEST_FORM:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more = body + message.get("body", b""), bool(message.get("more_body"))
        given = parse_qs(body[:LONGEST_FORM].decode("latin-1")).get("token", [""])[0].strip()
        if not hmac.compare_digest(given.encode(), self._token):
            await _answer(send, 403, self._login(True), kind="text/html")
            return
        cookie = f"{COOKIE}={self._session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS}"
        await _answer(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])


def _with_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with ours where it has none of its own."""
    there = {name.lower() for name, _ in given}
    own = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in there]
    return [*given, *own]


async def _answer(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None, *, kind: str = "text/plain"
) -> None:
    content = text.encode()
    own = [(b"content-type", f"{kind}; charset=utf-8".encode()), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *(headers or [])]})
    await send({"type": "http.response.body", "body": content})
