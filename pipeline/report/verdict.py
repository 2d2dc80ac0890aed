"""The verdict: rules from the configuration, held against what was measured. Never typed in, and never kinder than the figures.

A figure that was not computed keeps no rule: the verdict is undecided then, and what is undecided has not passed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.config import RuleConfig
from pipeline.findings import TIERS, Audit, Judged, Verdict

__all__ = ["Figure", "audit_figures", "judge", "report_figures"]

UNAUDITED = "not audited yet: unlearn audit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """What a rule is held against. value: None where it was not computed, and `note` says why."""

    value: float | str | None
    low: float | None = None
    high: float | None = None
    note: str = ""


def judge(rules: Mapping[str, RuleConfig], figures: Mapping[str, Figure]) -> Verdict:
    """Hold the rules that `figures` are about against them; rules about other figures are judged elsewhere.

    Args:
        rules: metric -> rule.
        figures: metric -> what was measured.
    """
    judged = tuple(_judged(name, rules[name], figures[name]) for name in figures if name in rules)
    states = {rule.state for rule in judged}
    if "broken" in states:
        return Verdict(outcome="failed", rules=judged)
    if "not computed" in states:
        return Verdict(outcome="undecided", rules=judged)
    return Verdict(outcome="passed" if judged else "no rules", rules=judged)


def _judged(metric: str, rule: RuleConfig, figure: Figure) -> Judged:
    words = [f"at least {rule.at_least}"] if rule.at_least is not None else []
    words += [f"at most {rule.at_most:g}"] if rule.at_most is not None else []
    bound = " and ".join(words) + (", with its interval" if rule.by == "interval" else "")
    kept = None if figure.value is None else _keeps(rule, figure)
    lacks = kept is None and figure.value not in (None, "")
    return Judged(
        metric=metric,
        bound=bound,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        state="not computed" if kept is None else "kept" if kept else "broken",
        reason=rule.reason,
        note="the figure has no interval" if lacks else figure.note,
    )


def _keeps(rule: RuleConfig, figure: Figure) -> bool | None:
    """None: the rule asks for an interval that the figure does not have, or for a tier that only an audit can give."""
    if isinstance(figure.value, str):
        order = [*TIERS, ""]
        kept = isinstance(rule.at_least, str) and order.index(figure.value) <= order.index(rule.at_least)
        return None if figure.note == UNAUDITED and not kept and rule.at_least in ("A", "D") else kept
    low, high = figure.value, figure.value
    if rule.by == "interval":
        if figure.low is None or figure.high is None:
            return None
        low, high = figure.low, figure.high
    # Written so that a figure that is no number keeps no rule.
    above = rule.at_least is None or (not isinstance(rule.at_least, str) and low is not None and low >= rule.at_least)
    return above and (rule.at_most is None or (high is not None and high <= rule.at_most))


def report_figures(facts: dict[str, Any]) -> dict[str, Figure]:
    """What a report measured, by the names of `pipeline.findings.MEASURED`."""
    own = facts["utility"]["unlearned"]
    certificate = facts.get("certificate") or {}
    granted = bool(certificate.get("granted"))
    return {
        "utility": Figure(value=own["value"], low=own["low"], high=own["high"], note=own["note"]),
        "kept": _kept(facts),
        "distance": _worst(facts["distance"], _beyond_chance),
        "membership": _worst(facts["membership"], _gap),
        "cost": Figure(value=facts["cost"]["share"], note=facts["cost"]["note"]),
        "epsilon": Figure(
            value=certificate["epsilon"] if granted else None, note="" if granted else "no certificate was granted"
        ),
        "tier": Figure(value=facts["claims"]["tier"], note="" if facts["claims"]["tier"] else UNAUDITED),
    }


def _kept(facts: dict[str, Any]) -> Figure:
    for row in facts["table"]:
        before, after = row["original"]["error"], row["unlearned"]["error"]
        if row["split"] == "unseen_retain" and before and after is not None:
            return Figure(value=after / before)
    return Figure(value=None, note="not computed: no error on unseen images of kept kinds")


def _beyond_chance(row: dict[str, Any]) -> dict[str, Any]:
    """With few images chance alone reaches far: what lies within it is no distance."""
    own, chance = row["unlearned"], row["detectable"]
    if own["value"] is None or chance is None:
        return {**own, "value": None}
    return {**own, **{name: max(0.0, own[name] - chance) for name in ("value", "low", "high") if own[name] is not None}}


def _gap(row: dict[str, Any]) -> dict[str, Any]:
    """How far apart the two scores' intervals lie: with few images the scores differ widely by chance."""
    own, other = row["unlearned"], row["retrained"]
    for figure in (own, other):
        if figure["value"] is None:
            return {"value": None, "low": None, "high": None, "note": figure["note"]}
    apart = max(0.0, own["low"] - other["high"], other["low"] - own["high"])
    return {"value": apart, "low": None, "high": None, "note": ""}


def _worst(rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], dict[str, Any]]) -> Figure:
    """The largest of the forget groups; not computed where it is missing for one of them."""
    found = [(row["group"], figure(row)) for row in rows if row.get("split", "forget") == "forget"]
    missing = [(group, item) for group, item in found if item["value"] is None]
    if missing or not found:
        group, item = missing[0] if missing else ("", {"note": "not computed"})
        return Figure(value=None, note=f"{group}: {item['note']}" if group else item["note"])
    group, worst = max(found, key=lambda pair: pair[1]["value"])
    return Figure(value=worst["value"], low=worst["low"], high=worst["high"], note=group if len(found) > 1 else "")


def audit_figures(audit: Audit) -> dict[str, Figure]:
    """What an audit found, by the names of `pipeline.findings.AUDITED`."""
    own = [item for item in audit.findings if item.subject == "unlearned"]
    flagged = [item for item in own if item.says in ("still there", "over-forgotten")]
    bounds = [item.epsilon_low for item in own if item.epsilon_low is not None]
    names = ", ".join(f"{item.attack} ({item.group})" for item in flagged)
    return {
        "attacks": Figure(value=float(len(flagged)) if own else None, note=names or ("" if own else "no attack was run")),
        "epsilon_low": Figure(value=max(bounds, default=None), note="" if bounds else "not computed: no attack bounds epsilon"),
        "tier": Figure(value=audit.tier),
        "blind": Figure(value=float(sum(item.says in ("no power", "not computed") for item in own))),
    }
