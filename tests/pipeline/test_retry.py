"""Faults that may pass are waited out with jitter until the deadline; others are raised at once, as they are."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import retry
from pipeline.errors import DataError, StorageError
from pipeline.retry import passes, retrying


class Clock:
    """Time that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(retry, "time", found)
    return found


def failing(times: float, fault: Exception) -> Callable[[], int]:
    count = 0

    def act() -> int:
        nonlocal count
        count += 1
        if count <= times:
            raise fault
        return count

    return act


@pytest.mark.parametrize("fault", [ConnectionResetError(), TimeoutError(), OSError(errno.EBUSY, "SlowDown"), Exception("odd")])
def test_what_may_pass_is_tried_again(clock: Clock, fault: Exception) -> None:
    assert retrying(failing(5, fault), what="s3://b/x", deadline_seconds=60) == 6
    assert len(clock.pauses) == 5


@pytest.mark.parametrize(
    "fault",
    [
        FileNotFoundError("x"),
        PermissionError("x"),
        DataError("x"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EINVAL, "InvalidRange"),
        KeyError("ETag"),
        TypeError("ours"),
    ],
)
def test_what_does_not_pass_is_raised_at_once(clock: Clock, fault: Exception) -> None:
    assert not passes(fault)
    with pytest.raises(type(fault)) as caught:
        retrying(failing(1, fault), what="s3://b/x", deadline_seconds=60)
    assert caught.value is fault and clock.pauses == []


@given(deadline=st.floats(0.01, 500))
def test_the_deadline_counts_from_the_first_failure_and_is_never_passed(deadline: float) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match=r"s3://b/x: failed for .*: gone") as caught:
        patch.setattr(retry, "time", clock)
        retrying(failing(float("inf"), ConnectionError("gone")), what="s3://b/x", deadline_seconds=deadline)
    assert clock.now - 1000 < deadline
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert all(0 <= pause <= retry.LONGEST_SECONDS for pause in clock.pauses)


def test_pauses_grow_and_no_two_hosts_share_them(clock: Clock) -> None:
    runs = []
    for _ in range(20):
        clock.pauses = []
        retrying(failing(10, ConnectionError()), what="x", deadline_seconds=1e6)
        runs.append(clock.pauses)
    assert len({tuple(run) for run in runs}) == 20
    assert all(pause <= retry.FIRST_SECONDS * 2**turn for run in runs for turn, pause in enumerate(run))
    means = [sum(run[turn] for run in runs) / 20 for turn in (0, 3, 6)]
    assert means[0] < means[1] < means[2]


def test_long_troubles_are_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="pipeline.retry"):
        retrying(failing(3, ConnectionError("away")), what="s3://b/x", deadline_seconds=1e6)
        assert not caplog.records
        retrying(failing(40, ConnectionError("away")), what="s3://b/x", deadline_seconds=1e6)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["s3://b/x: away"]


def _fault(name: str, **fields: object) -> Exception:
    return type(name, (Exception,), fields)("no")


@pytest.mark.parametrize(
    "fault",
    [
        _fault("NoCredentialsError"),
        _fault("ClientAuthenticationError", status_code=401),
        _fault("HttpResponseError", status_code=403),
        _fault("ClientResponseError", status=403),
        _fault("HttpError", code=401),
        OSError("Forbidden: bucket/x"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_refusal_is_one_whatever_a_client_calls_it(clock: Clock, fault: Exception) -> None:
    """Waiting does not make credentials right."""
    with pytest.raises(PermissionError, match=type(fault).__name__):
        retrying(failing(1, fault), what="gs://b/x", deadline_seconds=60)
    assert not clock.pauses


@pytest.mark.parametrize("fault", [_fault("HttpResponseError", status_code=503), _fault("HttpError", code=429)])
def test_a_busy_store_is_no_refusal(clock: Clock, fault: Exception) -> None:
    assert retrying(failing(2, fault), what="gs://b/x", deadline_seconds=60) == 3
