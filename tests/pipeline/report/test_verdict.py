"""Rules against figures: what is not measured keeps nothing, and no rule is kept by a figure beyond its bound."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RuleConfig
from pipeline.findings import AUDITED, MEASURED, Audit, Finding, Verdict
from pipeline.report.verdict import UNAUDITED, Figure, audit_figures, judge, report_figures

NUMBERS = st.floats(min_value=-10, max_value=10)


def rule(**bounds: Any) -> RuleConfig:
    return RuleConfig(reason="a reason", **bounds)


@given(NUMBERS, NUMBERS)
def test_a_rule_is_kept_up_to_its_bound_and_broken_beyond(value: float, bound: float) -> None:
    figures = {"cost": Figure(value=value)}
    assert (judge({"cost": rule(at_most=bound)}, figures).outcome == "passed") == (value <= bound)
    assert (judge({"cost": rule(at_least=bound)}, figures).outcome == "passed") == (value >= bound)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_by_interval_the_far_end_counts(low: float, high: float, bound: float) -> None:
    low, high = sorted((low, high))
    figures = {"utility": Figure(value=(low + high) / 2, low=low, high=high)}
    assert (judge({"utility": rule(at_most=bound, by="interval")}, figures).outcome == "passed") == (high <= bound)
    assert (judge({"utility": rule(at_least=bound, by="interval")}, figures).outcome == "passed") == (low >= bound)


def test_an_interval_that_was_not_computed_keeps_no_rule() -> None:
    verdict = judge({"cost": rule(at_most=1, by="interval")}, {"cost": Figure(value=0.1)})
    assert verdict.outcome == "undecided" and verdict.rules[0].note == "the figure has no interval"


def test_what_was_not_computed_is_undecided_never_passed() -> None:
    rules = {"utility": rule(at_most=1.1), "cost": rule(at_most=1)}
    figures = {"utility": Figure(value=None, note="no retrained model"), "cost": Figure(value=0.1)}
    verdict = judge(rules, figures)
    assert verdict.outcome == "undecided" and "utility not computed" in verdict.words
    broken = judge(rules, {**figures, "cost": Figure(value=3.0)})
    assert broken.outcome == "failed" and broken.words == "failed: cost"


def test_no_number_keeps_no_rule() -> None:
    assert judge({"cost": rule(at_most=1)}, {"cost": Figure(value=float("nan"))}).outcome == "failed"


def test_without_rules_nothing_is_decided() -> None:
    verdict = judge({}, {"cost": Figure(value=0.1)})
    assert verdict.outcome == "no rules" and "nothing was decided" in verdict.words


@pytest.mark.parametrize(
    ("tier", "wanted", "outcome"),
    [
        ("E", "C", "passed"),
        ("C", "C", "passed"),
        ("A", "C", "failed"),
        ("", "C", "failed"),
        ("D", "A", "failed"),
        ("", "D", "failed"),
    ],
)
def test_tiers_have_an_order(tier: str, wanted: Any, outcome: str) -> None:
    assert judge({"tier": rule(at_least=wanted)}, {"tier": Figure(value=tier)}).outcome == outcome


def test_before_the_audit_the_audited_tier_is_undecided_and_a_stronger_one_is_missed() -> None:
    figure = {"tier": Figure(value="", note=UNAUDITED)}
    assert judge({"tier": rule(at_least="A")}, figure).outcome == "undecided"
    assert judge({"tier": rule(at_least="C")}, figure).outcome == "failed"


def facts(**changes: Any) -> dict[str, Any]:
    def distance(group: str, value: float | None) -> dict[str, Any]:
        own = {"value": value, "low": value, "high": value, "note": "" if value is not None else "not computed: no model"}
        return {"split": "forget", "group": group, "detectable": 0.05, "unlearned": own}

    def member(group: str, value: float, other: float | None) -> dict[str, Any]:
        figures = [{"value": v, "low": v and v - 0.01, "high": v and v + 0.01, "note": "no model"} for v in (value, other)]
        return {"group": group, "unlearned": figures[0], "retrained": figures[1]}

    return {
        "utility": {"unlearned": {"value": 1.02, "low": 1.0, "high": 1.05, "note": ""}},
        "table": [{"split": "unseen_retain", "original": {"error": 0.04}, "unlearned": {"error": 0.05}}],
        "distance": [distance("a", 0.30), distance("b", 0.04)],
        "membership": [member("a", 0.02, 0.5), member("b", 0.6, 0.5)],
        "cost": {"share": 0.2, "note": ""},
        "certificate": None,
        "claims": {"tier": ""},
    } | changes


def test_the_worst_group_is_judged_and_a_score_near_0_is_as_far_off_as_one_near_1() -> None:
    found = report_figures(facts())
    assert set(found) == set(MEASURED)
    assert found["distance"].value == pytest.approx(0.25) and found["distance"].note == "a"
    assert found["membership"].value == pytest.approx(0.46)
    assert found["kept"].value == pytest.approx(1.25)
    assert found["epsilon"].value is None


def test_one_group_without_figure_leaves_the_worst_unknown() -> None:
    rows = facts()
    rows["distance"][1]["unlearned"] = {"value": None, "low": None, "high": None, "note": "not computed: too few"}
    rows["membership"][1]["retrained"] = {"value": None, "note": "not computed: no retrained model"}
    found = report_figures(rows)
    assert found["distance"].value is None and "too few" in found["distance"].note
    assert found["membership"].value is None and "no retrained model" in found["membership"].note
    assert report_figures(facts(distance=[]))["distance"].value is None


def test_within_chance_there_is_no_distance() -> None:
    rows = facts()
    rows["distance"] = rows["distance"][1:]
    assert report_figures(rows)["distance"].value == 0.0


def test_a_withheld_certificate_has_no_epsilon_to_keep_a_rule() -> None:
    certificate = {"granted": False, "epsilon": None}
    assert report_figures(facts(certificate=certificate))["epsilon"].value is None
    granted = {"granted": True, "epsilon": 8.0}
    assert judge({"epsilon": rule(at_most=8)}, report_figures(facts(certificate=granted))).outcome == "passed"


def test_an_audit_is_judged_by_what_it_found_of_the_released_model() -> None:
    def finding(subject: str, says: Any, bound: float | None = None) -> Finding:
        return Finding(attack="canary", group="g", subject=subject, measure="", says=says, epsilon_low=bound)

    audit = Audit(
        run_id="r",
        weights_sha256="",
        passed=False,
        tier="",
        words="",
        confidence=0.95,
        verdict=Verdict(outcome="no rules"),
        findings=(
            finding("original", "still there", 3.0),
            finding("unlearned", "over-forgotten", 1.0),
            finding("unlearned", "no power"),
            finding("unlearned", "not told apart", 0.5),
        ),
    )
    found = audit_figures(audit)
    assert set(AUDITED) <= set(found)
    assert (found["attacks"].value, found["epsilon_low"].value, found["blind"].value) == (1.0, 1.0, 1.0)
    assert judge({"attacks": rule(at_most=0)}, found).outcome == "failed"
