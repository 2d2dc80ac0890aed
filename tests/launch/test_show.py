"""Tables: boxes on a terminal, aligned words in a pipe."""

from __future__ import annotations

import json
import sys

import pytest

from launch.show import print_json, print_table, report_rows, size_text
from pipeline.records import FileRef


def test_a_pipe_gets_aligned_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count"], [["a", "1"], ["longer", "200"]])
    assert capsys.readouterr().out == "name    count\na           1\nlonger    200\n"


def test_a_table_without_rows_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count"], [])
    assert capsys.readouterr().out == "name  count\n"


def test_a_terminal_gets_a_rich_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_table(["name"], [["[bold]kept as it is"]])
    out = capsys.readouterr().out
    assert "[bold]kept as it is" in out
    assert "┃" in out or "|" in out


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(FileRef(uri="é", sha256="0", bytes=1))
    assert json.loads(capsys.readouterr().out) == {"uri": "é", "sha256": "0", "bytes": 1}


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2 * 10**15, "2000.0 TB")])
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size_text(count) == text


def test_a_report_without_reference_says_not_computed() -> None:
    figure = {"error": 0.0123456, "low": 0.011, "high": 0.0131}
    table = [{"split": "forget", "group": "bags", "n": 12, "original": figure, "unlearned": {"error": 2}, "retrained": None}]
    columns, rows = report_rows({"table": table})
    assert columns == ["split", "group", "images", "original", "unlearned", "retrained"]
    assert rows == [["forget", "bags", "12", "0.01235 [0.011, 0.0131]", "2", "not computed"]]
    assert report_rows({})[1] == []
