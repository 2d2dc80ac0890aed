"""What a guard refuses."""

from __future__ import annotations

import math

from pipeline.engine.guard import Guard, Verdict


def test_non_finite_and_runaway_are_refused_by_name() -> None:
    guard = Guard(bounds={"forget": 2.0})
    assert guard.refuse({"forget": 1.9, "retain": 100.0}) == ""
    assert guard.refuse({"forget": 2.1}).startswith("runaway forget")
    assert guard.refuse({"retain": math.nan}) == "non-finite retain"
    assert guard.refuse({"retain": math.inf}) == "non-finite retain"


def test_without_a_probe_none_is_due() -> None:
    assert Guard().probe(5) is None
    assert Guard(probe=lambda step: Verdict(act="stop", reason=str(step))).probe(5) == Verdict(act="stop", reason="5")
