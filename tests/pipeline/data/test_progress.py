"""Progress in lines: the act, how far it is, and its rate, at most one line in two seconds."""

from __future__ import annotations

import pytest

from pipeline.data import progress as module


def test_a_line_in_two_seconds_with_the_rate_of_each_act(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = 100.0, list[str]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    tell = module.in_lines(lines.append)
    for done in range(0, 1001, 50):  # ten seconds at 100 images a second
        now = 100.0 + done / 100
        tell("pack", done)
    for done in range(0, 601, 200):
        now = 120.0 + done / 200
        tell("index", done)
    assert lines[0] == "pack: 50 images, 100 images/s" and lines[-1] == "index: 600 images, 200 images/s"
    assert len(lines) == 5 + 2, "of each act its own time, and not all calls were due"


def test_a_quick_act_says_nothing() -> None:
    lines: list[str] = []
    module.in_lines(lines.append)("index", 0)
    assert not lines
