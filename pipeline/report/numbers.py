"""Numbers as text, the same in the page, the card and the headlines. None reads "not computed"."""

from __future__ import annotations

from typing import Any

__all__ = ["NOT_COMPUTED", "between", "count", "decimals", "duration", "ratio", "share", "size"]

NOT_COMPUTED = "not computed"


def count(value: int | None) -> str:
    """12345 -> "12,345"."""
    return NOT_COMPUTED if value is None else f"{value:,}"


def decimals(value: float | None, places: int = 3) -> str:
    """A fixed number of decimals, so that columns align; a true minus sign."""
    return NOT_COMPUTED if value is None else f"{value:.{places}f}".replace("-", "−")


def between(figure: dict[str, Any], places: int = 3) -> str:
    """The interval of a figure with `low` and `high`; empty where it has none."""
    if figure.get("low") is None or figure.get("high") is None:
        return ""
    return f"{decimals(figure['low'], places)} – {decimals(figure['high'], places)}"


def share(value: float | None) -> str:
    """0.1134 -> "11 %"; below 10 % one decimal is kept."""
    return NOT_COMPUTED if value is None else f"{value * 100:.{0 if value >= 0.1 else 1}f} %"


def ratio(value: float | None) -> str:
    """1.0123 -> "1.012×"."""
    return NOT_COMPUTED if value is None else f"{value:.3f}×"


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units that matter."""
    if seconds is None:
        return NOT_COMPUTED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(num_bytes: int | None) -> str:
    """Bytes in binary units."""
    if num_bytes is None:
        return NOT_COMPUTED
    value, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
