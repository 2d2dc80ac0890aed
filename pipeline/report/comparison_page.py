"""compare.html: the comparison as one page that needs nothing but itself, in the look of report.html."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.report.comparison_table import remarks
from pipeline.report.page import environment
from pipeline.report.plots import Picture
from pipeline.report.tradeoff import Point, tradeoff

__all__ = ["render"]

PHASES: Mapping[str, str] = {"calibrate": "finds levels", "forget": "phase 1", "certify": "noisy steps", "retain": "phase 2"}


def render(facts: dict[str, Any], grids: Mapping[int, Mapping[str, bytes]]) -> str:
    """The page as HTML text.

    Args:
        facts: of `comparison.build`.
        grids: by seed, PNG bytes by the file names that stage evaluate gave them.
    """
    rows = [*facts["methods"], *facts["references"]]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            facts=facts,
            rows=rows,
            axis=max([*_ends(rows), 1e-12]) * 1.04,
            remarks={row["subject"]: remarks(row) for row in rows},
            plots=_plots(facts, rows),
            grids=_grids(facts, grids),
            phase_names=PHASES,
        )
    )


def _ends(rows: list[dict[str, Any]]) -> list[float]:
    """Upper ends of all intervals of distances: they share an axis."""
    seeds = [item for row in rows for group in row["groups"] for item in group["ks"]["seeds"]]
    return [value for item in seeds for value in (item["value"], item["high"]) if value is not None]


def _plots(facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[tuple[str, Picture]]:
    budget = facts["budget"]
    wanted = (
        ("Distance and cost", "cost", budget["cost"], "cost, of retraining", True),
        ("Distance and error on all else", "error_ratio", 1 + budget["loss"], "error on unseen kept images / retrained's", False),
    )
    drawn = []
    for title, key, limit, axis, percent in wanted:
        points = [_point(row, key) for row in rows if row[key]["mean"] is not None and row["score"]["mean"] is not None]
        # Retraining costs all there is, and would press the others into a corner.
        points = [point for point in points if point.kind != "retrained" or not percent]
        drawn.append((title, tradeoff(points, limit=limit, axis=axis, percent=percent, subject=title)))
    return [(title, picture) for title, picture in drawn if picture is not None]


def _point(row: Mapping[str, Any], key: str) -> Point:
    across, up = ((figure["mean"], figure["low"], figure["high"]) for figure in (row[key], row["score"]))
    kind = row["subject"] if "number" not in row else "within" if row["budget"]["within"] else "beyond"
    return Point(label=str(row.get("number", "")), name=row["subject"], kind=kind, x=across, y=up)


def _grids(facts: Mapping[str, Any], grids: Mapping[int, Mapping[str, bytes]]) -> list[tuple[int, list[tuple[str, bytes]]]]:
    """Title and picture of each grid of each seed that has some."""
    titles = {str(number): f"Forgotten: {group['name']}" for number, group in enumerate(facts["groups"])} | {"retain": "Kept"}
    found = []
    for seed, pictures in grids.items():
        keys = {match[1]: content for name, content in pictures.items() if (match := re.fullmatch(r"grid_(\w+)\.png", name))}
        found.append((seed, [(title, keys[key]) for key, title in titles.items() if key in keys]))
    return [(seed, titled) for seed, titled in found if titled]
