"""report.html: one page that needs nothing but itself. Pictures are embedded, no script, no request to anywhere.

All text passes the template engine's escaping: class names and group names come from a source that others wrote.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.findings import MEASURED
from pipeline.report import numbers
from pipeline.report.facts import FURTHER, PHASES, SUBJECTS
from pipeline.report.plots import Picture, curves, histogram, log_bins, shares

__all__ = ["Material", "environment", "render"]

PHASE_TITLES: Mapping[str, str] = {
    "train": "Training of the original",
    "retrain": "Retraining, as reference",
    "calibrate": "Finding the levels",
    "forget": "Phase 1: forgetting",
    "certify": "Noisy steps, for a certificate",
    "retain": "Phase 2: retention",
}
REASONS: Mapping[str, str] = {"budget": "all steps made"}
FOUND: Mapping[str, str] = {
    "number": "the configuration",
    "held_out": "the original’s error on held-out images of the same kind",
    "shadow": "a short-lived shadow model that never saw the images",
}
METRIC_TITLES: Mapping[str, tuple[str, int]] = {
    "error_region": ("Error, hidden region", 4),
    "error_image": ("Error, whole image", 4),
    "psnr_region": ("PSNR, hidden region (dB)", 2),
    "psnr_image": ("PSNR, whole image (dB)", 2),
    "ssim_region": ("SSIM, hidden region", 3),
    "ssim_image": ("SSIM, whole image", 3),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What the page shows beside the facts.

    errors: `subject/split[/group number]` -> region errors [N]; grids: group number or `retain` -> PNG bytes;
    metrics: phase -> decoded lines of its metrics file.
    """

    errors: Mapping[str, NDArray[np.float64]]
    grids: Mapping[str, bytes]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]


def render(facts: dict[str, Any], material: Material) -> str:
    """The page as HTML text."""
    return (
        environment()
        .get_template("template.html.j2")
        .render(
            facts=facts,
            subjects=SUBJECTS,
            axis=_axis(facts["table"]),
            histograms=_histograms(facts, material.errors),
            grids=_grids(facts, material.grids),
            training=_training(facts, material.metrics),
            figures=_figures(facts),
            phase_titles=PHASE_TITLES,
            reasons=REASONS,
            found=FOUND,
            measured=MEASURED,
            reference=any(name.startswith("retrained/") for name in material.errors),
        )
    )


def environment() -> jinja2.Environment:
    """The templates beside this file, with escaping, strict names, and numbers and pictures as text."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("between", "count", "decimals", "duration", "ratio", "share", "size"):
        made.filters[name] = getattr(numbers, name)
    made.filters |= {"svg": _svg_uri, "png": _png_uri}
    return made


def _svg_uri(content: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def _png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _axis(table: list[dict[str, Any]]) -> float:
    """Right end of the axis on which the result table draws its intervals."""
    ends = [row[subject]["high"] for row in table for subject in SUBJECTS if row[subject]["high"] is not None]
    return max([*ends, 1e-12]) * 1.04


def _histograms(facts: dict[str, Any], errors: Mapping[str, NDArray[np.float64]]) -> list[tuple[str, Picture]]:
    """Title and plot for each forget group, then for unseen images of kept kinds, on shared axes."""
    levels = {level["group"]: level["level"] for level in facts["levels"]}
    wanted = [
        (group["name"], f"forget/{number}", levels.get(group["name"])) for number, group in enumerate(facts["asked"]["groups"])
    ]
    wanted.append(("Kept kinds, unseen", "unseen_retain", None))
    chosen = []
    for title, place, level in wanted:
        found = {s: errors[f"{s}/{place}"] for s in reversed(SUBJECTS) if len(errors.get(f"{s}/{place}", ()))}
        if found:
            chosen.append((title, found, level))
    edges = log_bins([values for _, found, _ in chosen for values in found.values()])
    top = max([float(shares(values, edges).max()) for _, found, _ in chosen for values in found.values()], default=1.0)
    return [(title, histogram(found, edges, top=top, level=level, subject=title)) for title, found, level in chosen]


def _grids(facts: dict[str, Any], grids: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    names = {str(number): group["name"] for number, group in enumerate(facts["asked"]["groups"])}
    titles = {**{number: f"Forgotten: {name}" for number, name in names.items()}, "retain": "Kept"}
    return [(title, grids[number]) for number, title in titles.items() if number in grids]


def _training(facts: dict[str, Any], metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Picture]]:
    labels = {f"forget_loss_{number}": f"{group['name'][:24]}" for number, group in enumerate(facts["asked"]["groups"])}
    labels |= {"retain_loss": "kept images", "loss": "training loss"}
    drawn = [(PHASE_TITLES[name], curves(metrics.get(name, ()), labels, subject=PHASE_TITLES[name])) for name in PHASES]
    return [(title, picture) for title, picture in drawn if picture is not None]


def _further_title(name: str, facts: dict[str, Any]) -> str:
    """The name of an extractor's figure, and how it was made, where some subject has it."""
    notes = [f["note"] for f in facts["figures"] if f["name"] == name and f["value"] is not None]
    return f"{name} ({notes[0]})" if notes else name


def _figures(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every figure of a split, one table a metric: title, decimals, rows of split, group and a cell a subject."""
    found = {(f["name"], f["split"], f["group"], f["subject"]): f for f in facts["figures"]}
    tables = []
    further = dict.fromkeys(f["name"] for f in facts["figures"] if f["name"].startswith(FURTHER))
    for name, (title, places) in {**METRIC_TITLES, **{name: (_further_title(name, facts), 4) for name in further}}.items():
        rows = [
            {"row": row, "cells": [found.get((name, row["split"], row["group"], subject)) for subject in SUBJECTS]}
            for row in facts["table"]
        ]
        tables.append({"title": title, "places": places, "rows": rows})
    return tables
