"""How answers look: rich tables on a terminal, plain aligned lines when piped, JSON on demand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.decode import plain

__all__ = ["markdown", "print_json", "print_table", "report_rows", "size_text"]

SUBJECTS = ("original", "unlearned", "retrained")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; a column whose cells are all figures is aligned to the right."""
    right = [bool(rows) and all(_is_figure(row[n]) for row in rows) for n in range(len(columns))]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name, is_right in zip(columns, right, strict=True):
            table.add_column(name, justify="right" if is_right else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[n]) for row in (columns, *rows)) for n in range(len(columns))]
    for row in (columns, *rows):
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(cells).rstrip())


def _is_figure(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell in ("not computed", "-")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; cells keep their words and lose what would end them."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def print_json(value: Any) -> None:
    """Print a record or plain data as one line of JSON."""
    print(json.dumps(plain(value), ensure_ascii=False))


def size_text(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _interval(figure: Mapping[str, Any] | None) -> str:
    """`0.0123 [0.0119, 0.0127]`; a figure without value was not computed."""
    if figure is None or figure.get("error") is None:
        return "not computed"
    text, low, high = f"{figure['error']:.4g}", figure.get("low"), figure.get("high")
    return text if low is None or high is None else f"{text} [{low:.4g}, {high:.4g}]"


def report_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a report's four-split table: the error in the hidden region, with its interval."""
    rows = []
    for entry in report.get("table", []):
        figures = [_interval(entry.get(subject)) for subject in SUBJECTS]
        rows.append([entry["split"], entry["group"], str(entry["n"]), *figures])
    return ["split", "group", "images", *SUBJECTS], rows
