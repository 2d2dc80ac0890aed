"""compare.json: several methods beside the original and the retrained model, over seeds, in an order that can be argued with.

First the methods that keep to the budget, by their mean distance to the retrained model; then the others. Counts, groups,
digests and method sections; no key and no subject.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pipeline.decode import digest, plain
from pipeline.orders import Budget
from pipeline.records import Evaluations, Manifest, MetricResult, PhaseOutcome, Receipt
from pipeline.report.comparison_table import table
from pipeline.report.facts import FURTHER, SPLITS, asked, versions
from pipeline.report.headline import deck

__all__ = ["Seed", "build"]

ORIGINAL, RETRAINED = "original", "retrained"
FAILED = "not computed: it failed"
NO_RETRAINING = "not computed: this run retrained no model"
NOT_EVALUATED = "not computed: not in this run's evaluation"

BY_DEFINITION = {"ks": 0.0, "error_ratio": 1.0}
"""Of the retrained model itself, where there is one."""

ROUNDING = 1e-9

Place = tuple[str, str, str]
"""Name, split and group of a figure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seed:
    """One seed's run: what it measured and cost. Without an evaluation where every method failed; `phases` by method."""

    seed: int
    failed: Mapping[str, str]
    confidence: float = 0.95
    manifest: Manifest | None = None
    evaluations: Evaluations | None = None
    phases: Mapping[str, Sequence[PhaseOutcome]] = dataclasses.field(default_factory=dict)
    retraining: PhaseOutcome | None = None
    receipts: Mapping[str, Receipt] = dataclasses.field(default_factory=dict)


def build(name: str, methods: Mapping[str, Mapping[str, Any]], seeds: Sequence[Seed], budget: Budget) -> dict[str, Any]:
    """All facts as plain JSON data; at least one of the seeds has an evaluation."""
    done = [seed for seed in seeds if seed.evaluations and seed.manifest]
    manifest = next(seed.manifest for seed in done if seed.manifest)
    groups = [group.name for group in manifest.groups]
    rows = [_method(method, section, seeds, groups, budget) for method, section in methods.items()]
    rows = _ordered(rows)
    references = [_row(subject, seeds, groups) for subject in (ORIGINAL, RETRAINED)]
    facts: dict[str, Any] = {
        "schema": "comparison/1",
        "name": name,
        "seeds": [seed.seed for seed in seeds],
        "budget": plain(budget),
        "confidence": done[0].confidence,
        "asked": asked(manifest),
        "groups": [_group(group, number, references[0], done) for number, group in enumerate(groups)],
        "methods": rows,
        "references": references,
        "sections": plain(methods),
        "further": _further([*(row["subject"] for row in rows), ORIGINAL, RETRAINED], seeds),
        "runs": [_run(seed) for seed in done],
        "versions": versions(),
    }
    return {**facts, "summary": _summary(facts), "deck": deck(facts), "table": table(facts)}


def _figure(seeds: Iterable[Seed], of_seed: Callable[[Seed], Mapping[str, Any]]) -> dict[str, Any]:
    """A figure over seeds: `mean`, lowest and highest value as `low` and `high`, and that of each seed with its interval."""
    each = [{"seed": seed.seed, **of_seed(seed)} for seed in seeds]
    values = [item["value"] for item in each if item["value"] is not None]
    notes = dict.fromkeys(item["note"] for item in each if item["value"] is None)
    return {
        "mean": fmean(values) if values else None,
        "low": min(values, default=None),
        "high": max(values, default=None),
        "seeds": each,
        "note": "; ".join(notes),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if len(there) == len(values) and there else None


def _value(value: float | None, note: str = "", low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "note": note}


def _measured(subject: str, place: Place) -> Callable[[Seed], dict[str, Any]]:
    of_original = _measured(ORIGINAL, place) if subject == RETRAINED else None

    def of_seed(seed: Seed) -> dict[str, Any]:
        if subject in seed.failed:
            return _value(None, FAILED)
        if of_original and place[0] in BY_DEFINITION and of_original(seed)["value"] is not None:
            return _value(BY_DEFINITION[place[0]])
        found = _find(seed, subject, place)
        return _value(found.value, found.note, found.low, found.high) if found else _value(None, NOT_EVALUATED)

    return of_seed


def _find(seed: Seed, subject: str, place: Place) -> MetricResult | None:
    evaluation = seed.evaluations.subject(subject) if seed.evaluations else None
    return evaluation.find(*place) if evaluation else None


def _row(subject: str, seeds: Sequence[Seed], groups: Sequence[str]) -> dict[str, Any]:
    """What is told of any model: distances and membership by group, error on unseen retained images, cost."""

    def score(seed: Seed) -> dict[str, Any]:
        found = [_measured(subject, ("ks", "forget", group))(seed) for group in groups]
        if missing := [item for item in found if item["value"] is None]:
            return missing[0]
        return {"note": "", **{key: _mean([item[key] for item in found]) for key in ("value", "low", "high")}}

    def cost(key: str, share: bool = False) -> Callable[[Seed], dict[str, Any]]:
        return lambda seed: _cost(subject, seed, key, share)

    return {
        "subject": subject,
        "score": _figure(seeds, score),
        "groups": [
            {name: _figure(seeds, _measured(subject, (name, "forget", group))) for name in ("ks", "membership")}
            for group in groups
        ],
        "error_ratio": _figure(seeds, _measured(subject, ("error_ratio", "unseen_retain", ""))),
        "cost": _figure(seeds, cost("sample_gradients", True)),
        "sample_gradients": _figure(seeds, cost("sample_gradients")),
        "seconds": _figure(seeds, cost("seconds")),
    }


def _cost(subject: str, seed: Seed, key: str, share: bool) -> dict[str, Any]:
    if subject in seed.failed:
        return _value(None, FAILED)
    if seed.evaluations is None:
        return _value(None, NOT_EVALUATED)
    retraining = seed.retraining if seed.retraining and seed.retraining.sample_gradients else None
    if (share or subject == RETRAINED) and retraining is None:
        return _value(None, NO_RETRAINING)
    phases = [retraining] if subject == RETRAINED and retraining else seed.phases.get(subject, ())
    spent = sum(getattr(phase, key) for phase in phases)
    return _value(spent / retraining.sample_gradients if share and retraining else spent)


def _method(
    name: str, section: Mapping[str, Any], seeds: Sequence[Seed], groups: Sequence[str], budget: Budget
) -> dict[str, Any]:
    row = _row(name, seeds, groups)
    phases = next((seed.phases[name] for seed in seeds if name in seed.phases), ())
    row |= {"component": section["component"], "phases": [phase.phase for phase in phases]}
    row["failed"] = [{"seed": seed.seed, "why": seed.failed[name]} for seed in seeds if name in seed.failed]
    row["budget"] = _within(row, budget)
    return row


def _within(row: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Whether a method keeps to the budget, and if not why; None where that is not known."""
    if row["failed"]:
        return {"within": False, "why": "it failed"}
    cost, ratio = row["cost"], row["error_ratio"]
    for figure in (cost, ratio):
        if figure["mean"] is None:
            return {"within": None, "why": figure["note"].removeprefix("not computed: ")}
    why = []
    if cost["mean"] > budget.cost + ROUNDING:
        why.append(f"costs {cost['mean'] * 100:.4g} % of retraining")
    if ratio["mean"] - 1 > budget.loss + ROUNDING:
        why.append(f"loses {(ratio['mean'] - 1) * 100:.3g} %")
    return {"within": not why, "why": "; ".join(why)}


def _ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in order, numbered; `tied` marks those whose interval overlaps that of the first.

    A method's interval runs from the lowest to the highest end of its seeds' intervals: wide, so that few seeds do not
    pretend to tell apart what they cannot.
    """

    def key(row: dict[str, Any]) -> tuple[bool, bool, float, str]:
        mean = row["score"]["mean"]
        return (not row["budget"]["within"], mean is None, mean or 0.0, row["subject"])

    def interval(row: dict[str, Any]) -> tuple[float, float] | None:
        found = [item for item in row["score"]["seeds"] if item["low"] is not None]
        return (min(item["low"] for item in found), max(item["high"] for item in found)) if found else None

    rows = sorted(rows, key=key)
    best = interval(rows[0])
    for number, row in enumerate(rows, start=1):
        own = interval(row)
        overlaps = bool(best and own and own[0] <= best[1] and best[0] <= own[1])
        row |= {"number": number, "tied": number > 1 and overlaps}
    return rows


def _group(name: str, number: int, original: Mapping[str, Any], done: Sequence[Seed]) -> dict[str, Any]:
    """What chance reaches on a group's images, and whether the membership test finds them in the original at all."""
    limits = [found for seed in done if (found := _find(seed, ORIGINAL, ("ks_detectable", "forget", name)))]
    notes = [item["note"] for item in original["groups"][number]["membership"]["seeds"] if item["value"] is not None]
    return {
        "name": name,
        "detectable": max((found.value for found in limits if found.value is not None), default=None),
        "note": next((found.note for found in limits if found.value is None), ""),
        "n": max((found.samples for found in limits), default=0),
        "blind": bool(notes) and "looks trained on" not in notes,
    }


def _further(subjects: Sequence[str], seeds: Sequence[Seed]) -> list[dict[str, Any]]:
    """Tables of further figures, one a name: rows are models, columns splits and groups."""
    evaluations = [item for seed in seeds if seed.evaluations for item in seed.evaluations.evaluations]
    places = dict.fromkeys(
        (result.name, result.split, result.group)
        for evaluation in evaluations
        for result in evaluation.results
        if result.name.startswith(FURTHER)
    )
    tables = []
    for name in dict.fromkeys(place[0] for place in places):
        own = [place for place in places if place[0] == name]
        columns = [{"split": split, "group": group, "label": SPLITS.get(split, split)} for _, split, group in own]
        rows = [
            {"subject": subject, "cells": [_figure(seeds, _measured(subject, place)) for place in own]} for subject in subjects
        ]
        tables.append({"name": name, "columns": columns, "rows": rows})
    return tables


def _run(seed: Seed) -> dict[str, Any]:
    assert seed.manifest is not None
    receipt = seed.receipts["evaluate"]
    return {
        "seed": seed.seed,
        "run_id": seed.manifest.run_id,
        "evaluation": digest(receipt),
        "code_version": receipt.code_version,
        "ended_at": receipt.ended_at,
    }


def _summary(facts: Mapping[str, Any]) -> str:
    rows = facts["methods"]
    first, within = rows[0], [row for row in rows if row["budget"]["within"]]
    if first["score"]["mean"] is None:
        return "How near the methods come to retraining is not known."
    if not within:
        return "No method keeps to the budget."
    tied = [row["subject"] for row in within[1:] if row["tied"]]
    lead = f"Of {len(rows)} methods {len(within)} keep{'s' if len(within) == 1 else ''} to the budget; " if len(rows) > 1 else ""
    also = f", with {' and '.join(tied)} within its interval" if tied and len(tied) <= 2 else ""
    also = f", with {len(tied)} others within its interval" if len(tied) > 2 else also
    return f"{lead}{first['subject']} comes nearest to the retrained model{also}."
