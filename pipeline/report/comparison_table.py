"""A comparison as one table of text, for a terminal and for Markdown: a row for each forget group and model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.report.numbers import NOT_COMPUTED

__all__ = ["remarks", "table"]


def table(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`columns`, `rows` and a `note` that says how to read them. Plain ASCII signs, so that every terminal shows them."""
    several = len(facts["seeds"]) > 1
    columns = ["forgotten", "place", "method", "KS to retrained", "chance reaches", "membership AUC", "retrained's AUC"]
    columns += ["error / retrained's", "cost / retraining", "seconds", "in budget", "remarks"]
    retrained = next(row for row in facts["references"] if row["subject"] == "retrained")
    rows = []
    for number, group in enumerate(facts["groups"]):
        reference = _text(retrained["groups"][number]["membership"], _three)
        for row in (*facts["methods"], *facts["references"]):
            own, budget = row["groups"][number], row.get("budget")
            cells = [group["name"], str(row.get("number", "-")), row["subject"], _text(own["ks"], _three)]
            cells += [_three(group["detectable"]) if group["detectable"] is not None else group["note"] or NOT_COMPUTED]
            cells += [_text(own["membership"], _three), reference, _text(row["error_ratio"], _three)]
            cells += [_text(row["cost"], _three), _text(row["seconds"], _one)]
            rows.append([*cells, _kept(budget) if budget else "-", "; ".join(remarks(row))])
    spread = "mean over seeds (lowest - highest)" if several else f"{facts['confidence'] * 100:g} % intervals in parentheses"
    limits = f"budget: at most {facts['budget']['cost'] * 100:g} % of retraining, {facts['budget']['loss'] * 100:g} % loss"
    return {"columns": columns, "rows": rows, "note": f"seeds {', '.join(map(str, facts['seeds']))}; {spread}; {limits}"}


def remarks(row: Mapping[str, Any]) -> list[str]:
    """What is to be said of a model beside its figures."""
    said = [f"failed at seed {item['seed']}: {item['why']}" for item in row.get("failed", ())]
    return [*(["within the interval of the first"] if row.get("tied") else []), *said]


def _kept(budget: Mapping[str, Any]) -> str:
    if budget["within"] is None:
        return f"not known: {budget['why']}"
    return "yes" if budget["within"] else f"no: {budget['why']}"


def _text(figure: Mapping[str, Any], form: Callable[[float], str]) -> str:
    """`0.068 (0.057 - 0.088)`: the interval of a single seed, the range of several; why there is no figure."""
    if figure["mean"] is None:
        return str(figure["note"]) or NOT_COMPUTED
    found = [item for item in figure["seeds"] if item["value"] is not None]
    ends = (found[0]["low"], found[0]["high"]) if len(found) == 1 else (figure["low"], figure["high"])
    return form(figure["mean"]) + (f" ({form(ends[0])} - {form(ends[1])})" if None not in ends and ends[0] != ends[1] else "")


def _three(value: float) -> str:
    return f"{value:.3f}"


def _one(value: float) -> str:
    return f"{value:.1f}"
