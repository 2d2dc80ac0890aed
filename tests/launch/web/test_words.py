"""Times, counts and states in words."""

from __future__ import annotations

import pytest

from launch.web import words
from pipeline.ledger.states import BATCH_MOVES, REQUEST_MOVES

NOW = "2026-11-26T09:30:00.000000Z"


@pytest.mark.parametrize(
    ("due", "text"),
    [
        ("2026-11-26T23:00:00Z", "today"),
        ("2026-11-27T00:00:00Z", "tomorrow"),
        ("2026-12-01T09:00:00Z", "in 5 days"),
        ("2026-11-26T09:00:00Z", "overdue since today"),
        ("2026-11-25T23:59:00Z", "1 day overdue"),
        ("2026-10-30T00:00:00Z", "27 days overdue"),
    ],
)
def test_due_dates_are_counted_in_days_of_the_calendar(due: str, text: str) -> None:
    assert words.until(due, NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7, "7 s"),
        (5.848, "5.85 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (18720, "5 h 12 min"),
        (4 * 86400, "4 days"),
        (0, "0 s"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_dates_digests_and_long_texts() -> None:
    assert (
        words.day(NOW) == "26 Nov 2026" and words.clock(NOW) == "26 Nov 2026, 09:30" and words.day(None) == words.clock("") == ""
    )
    assert words.short("a" * 64) == "a" * 12 + "…" and words.short("short") == "short"
    assert len(words.short_line("x" * 5000)) == 201 and words.short_line("x" * 200) == "x" * 200
    assert words.share(0.188) == "18.8 %" and words.count(1234567) == "1,234,567" and words.decimals(0.0123456) == "0.01235"


def test_only_final_states_have_the_empty_mark() -> None:
    bare = {state for state in {*REQUEST_MOVES, *BATCH_MOVES} if state not in words.MARKS}
    assert bare == {"withdrawn", "refused", "moved_on"}
