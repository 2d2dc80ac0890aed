"""When a request is due: one month after it came, and two more where they are asked for in time and with a reason."""

from __future__ import annotations

import calendar
import datetime
import functools

from pipeline.errors import ConfigError

__all__ = ["MONTHS", "MORE_MONTHS", "add_months", "later", "moment", "time_text"]

MONTHS = 1
"""GDPR Art. 12(3): within one month of receipt."""
MORE_MONTHS = 2
"""The same: extendable by two further months where necessary."""


def time_text(when: datetime.datetime) -> str:
    """A moment as the ledger writes it: `2026-11-26T09:30:00.000000Z`."""
    return when.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@functools.lru_cache(maxsize=4096)
def moment(text: str, *, where: str) -> datetime.datetime:
    """A date or a time in ISO 8601, in UTC unless it says otherwise; a bare date is its beginning.

    Raises:
        ConfigError: neither; the message names `where`, not the text.
    """
    try:
        found = datetime.datetime.fromisoformat(text.strip())
        found = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
        return found.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: neither a date nor a time", "write e.g. 2026-11-26 or 2026-11-26T09:30:00Z") from None


@functools.lru_cache(maxsize=4096)
def add_months(when: str, months: int) -> str:
    """The same day and time so many months later, or the month's last day where it has no such day.

    Args:
        when: a time as the ledger writes it.
        months: 0 or more.
    """
    start = datetime.datetime.fromisoformat(when)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return time_text(start.replace(year=year, month=month + 1, day=day))


def later(when: str, seconds: float) -> str:
    """A time of the ledger so many seconds later."""
    return time_text(datetime.datetime.fromisoformat(when) + datetime.timedelta(seconds=seconds))
