"""How the page says times, counts and states."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from pipeline.ledger.deadlines import moment

__all__ = ["MARKS", "clock", "count", "day", "decimals", "duration", "share", "short", "short_line", "until"]

MARKS: Mapping[str, str] = {
    **dict.fromkeys(("received", "queued", "batched", "closed"), "waits"),
    **dict.fromkeys(("running", "evaluated"), "works"),
    **dict.fromkeys(("released", "done"), "done"),
    **dict.fromkeys(("failed", "held", "rolled_back", "silent", "receipt damaged"), "bad"),
}
"""State to the shape of its mark; all others are over without a release."""
SHOWN = 200


def _when(text: str) -> datetime.datetime:
    return moment(text, where="time")


def day(text: str | None) -> str:
    """A date: `3 Mar 2026`."""
    return f"{_when(text).day} {_when(text):%b %Y}" if text else ""


def clock(text: str | None) -> str:
    """A date and time, UTC: `3 Mar 2026, 14:05`."""
    return f"{day(text)}, {_when(text):%H:%M}" if text else ""


def until(text: str, now: str) -> str:
    """How far a due date is away, by the calendar: `in 5 days`, `today`, `3 days overdue`."""
    days = (_when(text).date() - _when(now).date()).days
    if text < now:
        return "overdue since today" if days == 0 else f"{-days:,} day{'s' if days != -1 else ''} overdue"
    return "today" if days == 0 else "tomorrow" if days == 1 else f"in {days:,} days"


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def decimals(number: float) -> str:
    """A figure with four digits that count."""
    return f"{number:.4g}"


def duration(seconds: float) -> str:
    """A span: `4.25 s`, `45 s`, `3 min 20 s`, `5 h 12 min`, `4 days`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"


def share(part: float) -> str:
    """A part of one in percent."""
    return f"{part * 100:.1f} %"


def short(text: str) -> str:
    """The first digits of a digest or pseudonym."""
    return f"{text[:12]}…" if len(text) > 13 else text


def short_line(text: str) -> str:
    """A long text cut where a table would break."""
    return f"{text[:SHOWN]}…" if len(text) > SHOWN else text
