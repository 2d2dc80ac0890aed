"""Only what passed goes through; a person may let the rest pass, by name and with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from launch.gate import Approval, approval, refuse_unfit
from pipeline.errors import ConfigError, GateFailed

LEAVE = Approval(approver="Ada", reason="an emergency", at="2026-02-01")


def judged(**states: str) -> dict[str, Any]:
    return {"verdict": {"rules": [{"metric": name, "state": state} for name, state in states.items()]}}


def test_a_verdict_that_passed_needs_nobody() -> None:
    assert refuse_unfit(judged(kept="kept"), None, None) is False
    assert refuse_unfit(judged(kept="kept"), judged(attacks="kept"), LEAVE) is False


@pytest.mark.parametrize(
    ("report", "audit", "words"),
    [
        (judged(kept="broken", cost="kept"), None, "the verdict failed: kept broken"),
        (judged(kept="kept"), judged(attacks="broken"), "the verdict failed: attacks broken"),
        (judged(tier="not computed"), None, "undecided: tier not computed"),
        (judged(), None, "no verdict"),
        ({}, {}, "no verdict"),
    ],
)
def test_what_did_not_pass_is_refused_and_a_person_may_let_it_pass(report: Any, audit: Any, words: str) -> None:
    with pytest.raises(GateFailed, match=words) as caught:
        refuse_unfit(report, audit, None)
    assert caught.value.exit_code == 4 and "--approve" in caught.value.cure
    assert refuse_unfit(report, audit, LEAVE) is True


def test_an_audit_decides_what_the_report_left_open() -> None:
    assert refuse_unfit(judged(tier="not computed"), judged(tier="kept"), None) is False


def test_an_approval_names_a_person_and_says_why() -> None:
    assert approval("", "", "now") is None
    assert approval(" Ada\n Lovelace ", "a  reason", "now") == Approval(approver="Ada Lovelace", reason="a reason", at="now")
    for words in (("Ada", " "), ("", "because")):
        with pytest.raises(ConfigError, match="one without the other"):
            approval(*words, "now")
