"""Who is let in: hosts by name, readers by token; nobody writes, and every answer binds the browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from launch.web.guard import COOKIE, HEADERS, Guard, read_token
from pipeline.errors import ConfigError

TOKEN = "correct-horse-battery-staple"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers everything with one word, and has a header of its own where the path says so."""
    own = [(b"content-security-policy", b"default-src 'none'")] if scope["path"] == "/own" else []
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), *own]})
    await send({"type": "http.response.body", "body": b"secret"})


def client(token: str = "", host: str = "localhost") -> TestClient:
    guard = Guard(
        application, token=token, names=frozenset({"localhost", "ledger.example.org"}), login=lambda wrong: f"login {wrong}"
    )
    return TestClient(guard, base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8377", "LEDGER.example.org.", "127.0.0.1:8377", "[::1]:8377", "[::1]", "10.0.0.7"]
)
def test_own_names_and_addresses_in_figures_are_answered(host: str) -> None:
    assert client().get("/", headers={"host": host}).text == "secret"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:8377", "127.0.0.1.evil.example", "", "a b", "[::1"]
)
def test_a_foreign_name_is_not(host: str) -> None:
    answer = client(TOKEN).get("/", headers={"host": host, "authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 421 and "secret" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get"])
def test_every_method_that_could_write_is_refused(method: str) -> None:
    answer = (
        client().request(method, "/")
        if method != "get"
        else client(TOKEN).request("POST", "/", headers={"authorization": f"Bearer {TOKEN}"})
    )
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


def test_head_has_no_body() -> None:
    answer = client().head("/")
    assert answer.status_code == 200 and answer.content == b""


@pytest.mark.parametrize("path", ["/", "/login", "/nope"])
@pytest.mark.parametrize("token", ["", TOKEN])
def test_every_answer_has_every_header(path: str, token: str) -> None:
    headers = client(token).get(path).headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    policy = headers["content-security-policy"]
    assert (
        "unsafe" not in policy and "http" not in policy and "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
    )


def test_an_answer_may_have_a_policy_of_its_own() -> None:
    answer = client().get("/own")
    assert answer.headers.get_list("content-security-policy") == ["default-src 'none'"]


def test_without_token_a_browser_is_sent_to_sign_in_and_a_program_refused() -> None:
    reader = client(TOKEN)
    page = reader.get("/", headers={"accept": "text/html"})
    assert page.status_code == 303 and page.headers["location"] == "/login"
    refused = reader.get("/metrics")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert reader.get("/static/page.css").text == "secret"


@pytest.mark.parametrize("given", ["wrong", TOKEN[:-1], TOKEN + "x", "", TOKEN.upper(), "é" * 9])
def test_a_wrong_token_is_refused_everywhere(given: str) -> None:
    reader = client(TOKEN)
    assert reader.get("/", headers={"authorization": f"Bearer {given}".encode()}).status_code == 401
    assert reader.get("/", headers={"cookie": f"{COOKIE}={given}".encode()}).status_code == 401
    assert reader.get("/", params={"token": TOKEN}).status_code == 401
    answer = reader.post("/login", data={"token": given})
    assert answer.status_code == 403 and "set-cookie" not in answer.headers and answer.text == "login True"


def test_the_right_one_opens_as_bearer_and_by_signing_in() -> None:
    reader = client(TOKEN)
    assert reader.get("/", headers={"authorization": f"bearer {TOKEN}"}).text == "secret"
    assert reader.get("/login").text == "login False"
    answer = reader.post("/login", data={"token": f" {TOKEN}\n"})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    assert reader.get("/").text == "secret"
    # Another server with the same token does not know the session.
    assert client(TOKEN).get("/", headers={"cookie": cookie.split(";")[0]}).status_code == 401


def test_a_form_that_is_too_long_is_cut() -> None:
    assert client(TOKEN).post("/login", content=b"x=" + b"a" * 100_000 + f"&token={TOKEN}".encode()).status_code == 403


def test_without_a_token_there_is_no_signing_in() -> None:
    assert client().post("/login", data={"token": ""}).status_code == 405


@pytest.mark.parametrize(
    ("file", "text", "host", "token"),
    [
        ("", "", "127.0.0.1", ""),
        ("", "", "localhost", ""),
        ("", "", "::1", ""),
        ("", TOKEN, "0.0.0.0", TOKEN),
        (f" {TOKEN}\n", "", "h", TOKEN),
    ],
)
def test_tokens_are_read(file: str, text: str, host: str, token: str, tmp_path: Path) -> None:
    if file:
        (tmp_path / "token").write_text(file)
    assert read_token(str(tmp_path / "token") if file else "", text, host) == token


@pytest.mark.parametrize(
    "given",
    [
        *(
            {"text": "", "host": "0.0.0.0"},
            {"text": "", "host": "ledger.example.org"},
            {"text": "too-short", "host": "127.0.0.1"},
        ),
        *(
            {"text": "with a space in it", "host": "::"},
            {"text": "é" * 20, "host": "::"},
            {"file": "nowhere", "host": "127.0.0.1"},
        ),
    ],
)
def test_a_missing_or_weak_token_is_refused_without_being_quoted(given: Mapping[str, str], tmp_path: Path) -> None:
    file = str(tmp_path / given["file"]) if "file" in given else ""
    with pytest.raises(ConfigError) as refused:
        read_token(file, given.get("text", ""), given["host"])
    assert not given.get("text") or given["text"] not in str(refused.value)


def test_a_web_socket_is_closed() -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/"):
        pass
