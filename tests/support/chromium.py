"""Debian's Chromium, driven by the DevTools protocol over two pipes: what a page says, asks for, and looks like."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 30.0
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
KEYS = {"Tab": 9, "Enter": 13, "ArrowDown": 40}


def program() -> str | None:
    """Where Chromium is, if it is installed."""
    return shutil.which("chromium")


class Page:
    """One tab.

    Attributes:
        said: errors and warnings of its console, and what was thrown.
        asked: addresses of all its requests.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._rest = send, receive, b""
        self._numbers, self._session = itertools.count(1), ""
        self._events: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            found = self._next(until)
            if found is not None and found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                return dict(found["result"])
        raise TimeoutError(method)

    def _next(self, until: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            self._rest += os.read(self._receive, 1 << 20)
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        self._note(found)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        method, told = message.get("method", ""), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(f"thrown: {told['exceptionDetails'].get('exception', {}).get('description', '')}")
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.said.append(f"{told['type']}: {told['args']}")
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{told['entry']['level']}: {told['entry']['text']} {told['entry'].get('url', '')}")
        self._events.append({"method": method})

    def open(self, address: str) -> None:
        """Go to an address and wait until all of it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=address)
        until = time.monotonic() + SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            assert self._next(until) is not None, f"{address}: not loaded"

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 10.0) -> float:
        """Wait until an expression is true; returns after how many seconds it was."""
        start = time.monotonic()
        while not self.js(expression):
            assert time.monotonic() - start < seconds, f"never: {expression}"
            time.sleep(0.01)
        return time.monotonic() - start

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """How large the screen is, and whether its owner likes it dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen as PNG; `whole`: the page's full length."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A tab of a fresh Chromium whose profile lies in a folder; it is ended with all its processes."""
    chromium = program()
    assert chromium is not None
    to_it, from_us = os.pipe()
    to_us, from_it = os.pipe()
    command = [chromium, *QUIET, f"--user-data-dir={profile}", "about:blank"]
    # The protocol speaks on descriptors 3 and 4.
    words = ["bash", "-c", f'exec "$@" 3<&{to_it} 4>&{from_it}', "bash", *command]
    started = subprocess.Popen(words, pass_fds=(to_it, from_it), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(to_it)
    os.close(from_it)
    try:
        page = Page(from_us, to_us)
        yield page
        page._session = ""
        page.call("Browser.close")
        started.wait(20)
    finally:
        if started.poll() is None:
            started.kill()
            started.wait()
        os.close(from_us)
        os.close(to_us)
