"""Plots of an audit: ROC curves on logarithmic axes, and where a statistic would lie if nothing were left to find.

Attacks are compared where few images are accused wrongly, which linear axes hide (Carlini et al., Membership Inference Attacks
From First Principles, 2022, section IV).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.findings import OVER
from pipeline.report.numbers import decimals
from pipeline.report.plots import Palette, Picture, both

__all__ = ["Rates", "found_at", "null_histogram", "roc_curves"]

Floats = NDArray[np.float64]
Rates = tuple[Floats, Floats]
"""Rates of false and of true positives, float64 [P] each, both above 0 and rising to 1."""

BINS = 30
REACH = 6.0
"""The axis of a null histogram ends where a model is so many times as far out as the outermost draw."""
DASHES: Mapping[str, str] = {"unlearned": "-", "original": "--", OVER: "-."}


def roc_curves(curves: Mapping[str, Rates], *, least: float, subject: str) -> Picture:
    """True over false positives of each model, both axes logarithmic, chance as the diagonal.

    Args:
        curves: model -> its rates; a dot marks where each curve enters.
        least: lower end of both axes, 1 / number of images, in (0, 1).
        subject: what was attacked, for the text alternative.
    """

    def paint(axes: Axes, palette: Palette) -> None:
        axes.plot([least, 1], [least, 1], color=palette.ink, linewidth=1, linestyle=":", label="chance")
        for name, (wrong, right) in curves.items():
            style: dict[str, Any] = {"color": _colour(name, palette), "linestyle": DASHES.get(name, "-"), "linewidth": 1.6}
            axes.plot(wrong, right, drawstyle="steps-post", marker="o", markersize=4, markevery=[0], label=name, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        # A little room, so that a curve that runs along an edge is seen whole.
        axes.set_xlim(least * 0.93, 1.07)
        axes.set_ylim(least * 0.93, 1.15)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0,) if least < 0.03 else (1.0, 3.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("false positive rate (log scale)")
        axes.set_ylabel("true positive rate")

    low = max(0.01, least)
    told = "; ".join(
        f"{name} {decimals(found_at(rates, low))} and {decimals(found_at(rates, 0.1))}" for name, rates in curves.items()
    )
    alt = f"ROC curves on logarithmic axes, {subject}. True positive rates at false positive rates of {low:.2g} and 0.1: {told}."
    return both(paint, alt)


def found_at(rates: Rates, wrong: float) -> float:
    """The rate of true positives at a rate of false ones of at most `wrong`; 0 where the curve enters later."""
    place = int(np.searchsorted(rates[0], wrong * (1 + 1e-9), side="right")) - 1
    return float(rates[1][place]) if place >= 0 else 0.0


def null_histogram(
    null: Floats, observed: Mapping[str, float], *, kept: tuple[float, float] | None, statistic: str, subject: str
) -> Picture:
    """Draws of a statistic where nothing is left to find, and what it is for each model.

    A model that lies far outside is drawn as an arrow at the edge, so that the draws keep a width.

    Args:
        null: the draws, at least one.
        observed: model -> its statistic.
        kept: the interval that unseen kept images give, as a shade; None for none.
        statistic: words below the axis.
        subject: what was attacked, for the text alternative.
    """
    left, right = _limits(null, [*observed.values(), *(kept or ())])
    low, high = float(null.min()), float(null.max())
    wide = (right - left) / 60
    center = (low + high) / 2
    edges = np.linspace(low, high, BINS + 1) if high - low > wide else np.array([center - wide / 2, center + wide / 2])
    heights = np.histogram(np.clip(null, edges[0], edges[-1]), edges)[0] / len(null)

    def paint(axes: Axes, palette: Palette) -> None:
        if kept is not None:
            axes.axvspan(*np.clip(kept, left, right), color=palette.retrained, alpha=0.18, linewidth=0, label="kept images")
        axes.stairs(heights, edges, color=palette.retrained, fill=True, alpha=0.75, label="nothing left")
        top = float(heights.max())
        for name, value in observed.items():
            place = float(np.clip(value, left, right))
            colour = _colour(name, palette)
            style: dict[str, Any] = {"color": colour, "linestyle": DASHES.get(name, "-"), "linewidth": 1.6, "clip_on": False}
            axes.plot([place, place], [0, top], label=name, **style)
            if place != value:
                axes.plot([place], [top], ">" if value > place else "<", color=colour, markersize=6, clip_on=False)
        axes.set_xlim(left, right)
        axes.set_ylim(0, top * 1.12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.3g} %"))
        axes.set_xlabel(statistic)

    told = "; ".join(f"{name} {decimals(value)}" for name, value in observed.items())
    shade = f" Kept images give {decimals(kept[0])} to {decimals(kept[1])}." if kept is not None else ""
    span = f"{decimals(low)} to {decimals(high)}"
    alt = f"Histogram of {statistic}, {subject}: {span} where nothing is left. Models: {told}.{shade}"
    return both(paint, alt, columns=3)


def _limits(null: Floats, marks: list[float]) -> tuple[float, float]:
    """Ends of the axis: as far as there is something to show, but no further than REACH times the draws."""
    center = float(np.median(null))
    half = float(np.abs(null - center).max())
    far = max([half, *(abs(mark - center) for mark in marks)])
    reach = min(far, REACH * half) if half > 0 else far or 1.0
    low, high = (max(-reach, min([*null, *marks]) - center), min(reach, max([*null, *marks]) - center))
    room = max(high - low, 1e-9) * 0.04
    return center + low - room, center + high + room


def _colour(name: str, palette: Palette) -> str:
    return {"unlearned": palette.unlearned, "original": palette.original, "retrained": palette.retrained}.get(name, palette.ink)
