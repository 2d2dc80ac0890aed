"""A month is a month of the calendar, and times sort as they pass."""

from __future__ import annotations

import calendar
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.ledger.deadlines import add_months, later, moment, time_text

MOMENTS = st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(2150, 1, 1), timezones=st.just(datetime.UTC))


@pytest.mark.parametrize(
    ("when", "months", "due"),
    [
        ("2026-01-31T12:00:00.000000Z", 1, "2026-02-28T12:00:00.000000Z"),
        ("2028-01-31T12:00:00.000000Z", 1, "2028-02-29T12:00:00.000000Z"),
        ("2026-12-15T00:00:00.000001Z", 1, "2027-01-15T00:00:00.000001Z"),
        ("2026-12-31T00:00:00.000000Z", 2, "2027-02-28T00:00:00.000000Z"),
    ],
)
def test_the_same_day_or_the_month_s_last(when: str, months: int, due: str) -> None:
    assert add_months(when, months) == due


@given(MOMENTS, st.integers(0, 40))
def test_the_day_is_the_same_or_the_last_that_there_is(when: datetime.datetime, months: int) -> None:
    due = datetime.datetime.fromisoformat(add_months(time_text(when), months))
    assert (due.year * 12 + due.month) - (when.year * 12 + when.month) == months and due.timetz() == when.timetz()
    assert due.day == when.day or due.day == calendar.monthrange(due.year, due.month)[1] < when.day


@given(MOMENTS, MOMENTS)
def test_texts_sort_as_times(first: datetime.datetime, second: datetime.datetime) -> None:
    assert (time_text(first) < time_text(second)) == (first < second)


def test_a_zone_is_turned_into_utc_and_a_bare_date_begins_there() -> None:
    assert time_text(moment("2026-03-01T01:00:00+02:00", where="x")) == "2026-02-28T23:00:00.000000Z"
    assert time_text(moment(" 2026-03-01 ", where="x")) == "2026-03-01T00:00:00.000000Z"
    assert later("2026-02-28T23:59:59.500000Z", 1.25) == "2026-03-01T00:00:00.750000Z"


@pytest.mark.parametrize("text", ["soon", "2026-02-30", "", "9999-12-31T23:59:59-23:00"])
def test_what_is_no_time_is_refused_without_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="row 3: due_at: neither a date nor a time"):
        moment(text, where="row 3: due_at")
