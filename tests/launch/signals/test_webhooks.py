"""Events are signed as Standard Webhooks has it, go to https alone, follow no redirect and take no longer than they may."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.signals.outbox import Item, Undelivered
from launch.signals.webhooks import check_url, deliver_to, is_loopback, post, read_secret, sign
from pipeline.errors import ConfigError
from tests.launch.signals.receiver import Receiver, receiving

ITEM = Item(target="webhook", event_id="e1", event="overdue", body='{"type": "unlearn.overdue"}', attempts=0)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """One that takes all."""
    with receiving() as found:
        yield found


def test_the_signature_is_the_one_of_the_standards_own_example() -> None:
    """From the specification at standardwebhooks.com, and of its libraries' tests."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_gets_the_body_with_headers_that_it_can_check(receiver: Receiver) -> None:
    deliver_to(receiver.url, b"s" * 32, ITEM)
    ((path, headers, body),) = receiver.taken
    assert path == "/hook?a=1" and body.decode() == ITEM.body and headers["content-type"] == "application/json"
    assert headers["webhook-id"] == "e1" and abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert headers["webhook-signature"] == sign(b"s" * 32, "e1", headers["webhook-timestamp"], body)
    assert headers["webhook-signature"] != sign(b"t" * 32, "e1", headers["webhook-timestamp"], body)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 500])
def test_anything_but_2xx_is_a_failure_and_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    with receiving() as other:
        receiver.status, receiver.location = status, other.url
        with pytest.raises(Undelivered, match=str(status)):
            post(receiver.url, ITEM, {})
        assert len(receiver.taken) == 1 and not other.taken


def test_nobody_there_is_a_failure_without_the_address(receiver: Receiver) -> None:
    with pytest.raises(Undelivered) as refused:
        post("http://127.0.0.1:9/secret-path", ITEM, {})
    assert "secret-path" not in str(refused.value)


def test_a_slow_receiver_is_cut_off_in_time(receiver: Receiver) -> None:
    receiver.delay = 0.2
    start = time.monotonic()
    with pytest.raises(Undelivered):
        post(receiver.url, ITEM, {}, limit=0.5)
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://example.org/x",
            "ftp://example.org/",
            "https://",
            "example.org",
            "https://me:hunter2@example.org/",
            "file:///x",
        ),
        *(
            "https://me@example.org/",
            "http://127.0.0.1.example.org/",
            "https://h:99999/",
            "https://h/\r\nX: y",
            "https://h/ b",
            "",
        ),
    ],
)
def test_other_addresses_are_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match="UNLEARN_WEBHOOK") as refused:
        check_url(url, "UNLEARN_WEBHOOK")
    assert "hunter2" not in str(refused.value) and "example" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://example.org", "https://10.0.0.1:8443/x?y=1", "http://localhost:1/", "http://[::1]/", "http://127.9.9.9/"]
)
def test_https_and_this_machine_are_let_pass(url: str) -> None:
    check_url(url, "UNLEARN_WEBHOOK")


def test_secrets_come_from_a_file_or_a_text_and_are_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("whsec_" + base64.b64encode(b"x" * 32).decode() + "\n")
    assert read_secret(str(file), "") == b"x" * 32
    assert read_secret("", "y" * 40) == b"y" * 40
    for file_name, text in (("", ""), ("", "short"), ("", "whsec_###"), (str(tmp_path / "none"), ""), ("", "whsec_c2hvcnQ=")):
        with pytest.raises(ConfigError) as refused:
            read_secret(file_name, text)
        assert "short" not in str(refused.value).replace("shorter", "")


def test_loopback_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1", "[::1]", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "localhost.example.org", "", "::")))
