"""The trade-off between forgetting and what it takes: a point a method, numbered as in the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report.numbers import decimals
from pipeline.report.plots import Palette, Picture, both

__all__ = ["Point", "tradeoff"]

LABEL = 0.055, 0.075
"""Width and height of a number beside its point, in shares of the axes."""
EDGE = 3
"""Multiple of the budget at which the horizontal axis ends."""
PLACES = tuple((np.cos(turn), np.sin(turn)) for turn in np.linspace(0.25, 2.25, 12, endpoint=False) * np.pi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One model. x and y: mean, lowest and highest over seeds; kind: within, beyond, original or retrained."""

    label: str
    name: str
    kind: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def tradeoff(points: Sequence[Point], *, limit: float, axis: str, percent: bool, subject: str) -> Picture | None:
    """Distance to the retrained model over a cost, with the budget as a line; None without a point.

    Args:
        points: the models.
        limit: the budget on the horizontal axis.
        axis: words below it.
        percent: write its figures in per cent.
        subject: what the plot is of, for the text alternative.
    """
    if not points:
        return None

    # One method that runs away would press the others into a corner: it is drawn on the edge.
    start = 0.0 if percent else 1.0
    edge = start + EDGE * max(limit - start, 1e-3)

    def paint(axes: Axes, palette: Palette) -> None:
        shape = {"within": "o", "beyond": "o", "original": "s", "retrained": "D"}
        colours = (palette.unlearned, palette.ink, palette.original, palette.retrained)
        colour = dict(zip(shape, colours, strict=True))
        words = {"within": "in budget", "beyond": "not in budget"}
        kinds = dict.fromkeys(point.kind for point in points)
        base: dict[str, Any] = {"markersize": 5.5, "linestyle": "none"}
        style = {kind: {**base, "color": colour[kind], "markerfacecolor": colour[kind]} for kind in kinds}
        for kind in kinds:
            if kind in ("beyond", "original"):
                style[kind] |= {"markerfacecolor": "none", "markersize": 8.0 if kind == "original" else 5.5}
            axes.plot([], [], shape[kind], label=words.get(kind, kind), **style[kind])
        for point in points:
            (x, left, right), (y, low, high) = point.x, point.y
            own: dict[str, Any] = {"color": colour[point.kind], "linewidth": 0.8, "alpha": 0.6}
            axes.plot([min(left, edge), min(right, edge)], [y, y], **own)
            axes.plot([min(x, edge)] * 2, [low, high], **own)
            form = ">" if x > edge else shape[point.kind]
            axes.plot([min(x, edge)], [y], form, clip_on=False, **style[point.kind])
        axes.axvline(limit, color=palette.ink, linewidth=1, linestyle=":", label="budget")
        _limits(axes, points, limit, edge)
        _number(axes, points, palette)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if percent:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
        axes.set_xlabel(axis)
        axes.set_ylabel("KS distance to retrained")

    told = "; ".join(f"{point.label} {point.name}: {decimals(point.x[0])}, {decimals(point.y[0])}" for point in points)
    return both(paint, f"{subject}: across {axis}, up the KS distance to the retrained model. {told}.")


def _limits(axes: Axes, points: Sequence[Point], limit: float, edge: float) -> None:
    right = min(edge, max([limit, *(end for point in points for end in point.x)]))
    left = min(end for point in points for end in point.x)
    room = max(right - left, 1e-6) * 0.06
    axes.set_xlim(left - room, right + (room if right < edge else 0))
    top = max([1e-3, *(end for point in points for end in point.y)])
    axes.set_ylim(-0.05 * top, 1.08 * top)


def _number(axes: Axes, points: Sequence[Point], palette: Palette) -> None:
    """Write each point's label beside it, where it lies over the fewest points and labels."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    across = [min(point.x[0], right) for point in points]
    at = np.array([((x - left) / (right - left), (p.y[0] - low) / (high - low)) for x, p in zip(across, points, strict=True)])
    taken = [*at]
    for place, x, point in zip(at, across, points, strict=True):
        if not point.label:
            continue
        spots = [place + reach * np.array([LABEL[0] * dx, LABEL[1] * dy]) for reach in (0.6, 1.2, 2.0) for dx, dy in PLACES]
        costs = [_crowding(spot, taken) + 0.02 * number / len(PLACES) for number, spot in enumerate(spots)]
        spot = spots[int(np.argmin(costs))]
        taken += [spot]
        offset = spot - place
        line = {"arrowstyle": "-", "color": palette.ink, "linewidth": 0.5, "alpha": 0.6}
        far = abs(offset[0]) > LABEL[0] or abs(offset[1]) > LABEL[1]
        axes.annotate(
            point.label,
            (x, point.y[0]),
            xytext=(float(spot[0]), float(spot[1])),
            textcoords="axes fraction",
            ha="center",
            va="center",
            fontsize=8.5,
            color=palette.ink,
            arrowprops=line if far else None,
        )


def _crowding(spot: np.ndarray, taken: Sequence[np.ndarray]) -> float:
    """How much a label at this spot lies over points and labels, or outside the axes."""
    gaps = np.abs(np.array(taken) - spot) / np.array(LABEL)
    over = np.clip(1 - gaps, 0, 1).prod(axis=1).sum()
    outside = np.clip(np.abs(spot - 0.5) - 0.49, 0, None).sum() * 20
    return float(over + outside)
