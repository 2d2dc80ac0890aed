"""Draw time and cost by the number of ranks, as a PNG file."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.orders import PictureAnswer, PictureOrder, Series
from pipeline.report.plots import LIGHT, STYLE
from pipeline.storage import absolute, publish_bytes

__all__ = ["run"]

COLOURS = (LIGHT.original, LIGHT.unlearned, "#3f7d4e", "#7a4fa3", LIGHT.ink)
SIZE = (9.0, 4.4)
DURATIONS = (
    *((seconds / 3600, f"{seconds} s") for seconds in (1, 3, 10, 30)),
    *((minutes / 60, f"{minutes} min") for minutes in (1, 3, 10, 30)),
    *((float(hours), f"{hours} h") for hours in (1, 3, 10)),
    *((24.0 * days, f"{days} d") for days in (1, 3, 10, 30, 100, 300)),
)
"""Hours, and how an axis calls them."""


def run(order: PictureOrder) -> PictureAnswer:
    """Draw hours on the left and cost on the right, over ranks from 1 on, both axes logarithmic."""
    theme: dict[Any, Any] = {**STYLE, "axes.edgecolor": LIGHT.faint, "text.color": LIGHT.ink, "axes.labelcolor": LIGHT.ink}
    with matplotlib.rc_context({**theme, "xtick.color": LIGHT.ink, "ytick.color": LIGHT.ink}):
        figure = Figure(figsize=SIZE, layout="constrained", dpi=150)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for number, series in enumerate(order.hours):
            _line(left, series, COLOURS[number % len(COLOURS)], number)
        _ideal(left, order.hours)
        for series in order.hours:
            _ring(left, series, order)
        _line(right, order.cost, LIGHT.ink, 0)
        for axes, text in ((left, "time of a stage"), (right, order.cost_unit)):
            _frame(axes, order, text)
        left.yaxis.set_major_locator(FixedLocator([hours for hours, _ in DURATIONS]))
        left.yaxis.set_major_formatter(FuncFormatter(lambda hours, _: dict(DURATIONS).get(hours, "")))
        figure.suptitle(order.title, fontsize=10.5, x=0.01, ha="left")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
        left.annotate(order.note, (1.0, 1.02), xycoords="axes fraction", fontsize=8, ha="right", color=LIGHT.retrained)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    file = absolute(order.file)
    publish_bytes(file, stream.getvalue())
    return PictureAnswer(file=file)


def _line(axes: Axes, series: Series, colour: str, number: int) -> None:
    """Solid as far as the run's settings go, and pale beyond."""
    inside = [point for point in series.points if point[0] <= series.allowed]
    beyond = [point for point in series.points if point[0] >= (inside[-1][0] if inside else 0)]
    marker = "os^Dv"[number % 5]
    if inside:
        axes.plot(*zip(*inside, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=series.name)
    if len(beyond) > 1:
        axes.plot(*zip(*beyond, strict=True), color=colour, linewidth=1.1, linestyle=":", alpha=0.7)


def _ideal(axes: Axes, hours: tuple[Series, ...]) -> None:
    """What the longest stage would take if ranks cost nothing but their number."""
    drawn = [series for series in hours if series.points]
    if drawn:
        longest = max(drawn, key=lambda series: series.points[0][1])
        (first, top), last = longest.points[0], longest.points[-1][0]
        axes.plot([first, last], [top, top * first / last], color=LIGHT.retrained, linestyle="--", label="in proportion")
        hours_of_all = [point[1] for series in drawn for point in series.points]
        axes.set_ylim(min(hours_of_all) / 1.6, max(hours_of_all) * 1.6)


def _frame(axes: Axes, order: PictureOrder, text: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({point[0] for series in (*order.hours, order.cost) for point in series.points})
    axes.xaxis.set_major_locator(FixedLocator(counts[::2] or [1.0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(order.unit)
    axes.set_title(text, fontsize=9.5, loc="left")
    axes.grid(axis="y", color=LIGHT.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5)


def _ring(axes: Axes, series: Series, order: PictureOrder) -> None:
    """A ring around the marked point of a line; only the first one stands in the legend."""
    points, count = dict(series.points), order.marks.get(series.name)
    if count in points:
        first = not any(line.get_label() == order.ring for line in axes.get_lines())
        style: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": LIGHT.ink}
        axes.plot([count], [points[count]], linestyle="none", label=order.ring if first else None, **style)
