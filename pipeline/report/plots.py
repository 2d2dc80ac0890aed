"""Plots as SVG, each in a light and a dark version: error histograms and training curves.

Drawn small, so that their text keeps its size on a phone. Lines differ in dash as well as in colour. The same data give
the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.report.numbers import decimals

__all__ = ["Palette", "Picture", "both", "curves", "histogram", "log_bins"]

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One plot: SVG bytes for light and for dark pages, and the text for those who cannot see it."""

    light: bytes
    dark: bytes
    alt: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of one theme; the page's style sheet names the same ones."""

    ink: str
    faint: str
    original: str
    unlearned: str
    retrained: str


# Blue and vermilion after Okabe & Ito's palette for colour-blind readers, adjusted to 3 : 1 contrast on each ground.
LIGHT = Palette(ink="#4a4f57", faint="#d9dbdf", original="#2b6cb0", unlearned="#c2410c", retrained="#8a9099")
DARK = Palette(ink="#b4bac4", faint="#363b44", original="#6ea8e0", unlearned="#f0885a", retrained="#8d95a1")

STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "i2i-unlearn",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
SIZE = (4.6, 2.7)
BINS = 40


def log_bins(samples: Sequence[Floats]) -> Floats:
    """Edges of BINS log-spaced bins [BINS + 1] that hold all positive values; one decade around 1 if there are none."""
    joined = np.concatenate([np.empty(0), *samples])
    positive = joined[joined > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (0.3, 3.0)
    if high <= low * 1.01:
        low, high = low / 3, high * 3
    edges = np.geomspace(low, high, BINS + 1)
    # Rounding must not push the extremes out of the outermost bins.
    edges[0], edges[-1] = low, high
    return edges


def histogram(errors: Mapping[str, Floats], edges: Floats, *, top: float, level: float | None, subject: str) -> Picture:
    """Histogram of per-image errors of each model on the same images.

    Args:
        errors: model -> region errors [N]; original, unlearned and, where there is one, retrained.
        edges: bin edges, shared by all histograms of a page.
        top: upper end of the share axis, shared likewise.
        level: the group's lambda, drawn as a vertical line; None for none.
        subject: whose errors these are, for the text alternative.
    """

    def paint(axes: Axes, palette: Palette) -> None:
        for name, values in errors.items():
            heights = shares(values, edges)
            colour = getattr(palette, name)
            if name == "retrained":
                axes.stairs(heights, edges, color=colour, fill=True, alpha=0.45, label=name)
            else:
                dash = "--" if name == "original" else "-"
                axes.stairs(heights, edges, color=colour, linewidth=1.7, linestyle=dash, label=name)
        if level is not None:
            axes.axvline(level, color=palette.ink, linewidth=1, linestyle=":", label="level λ")
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, top * 1.05)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if edges[-1] / edges[0] < 30 else (1.0,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.0f} %"))
        axes.set_xlabel("error of an image in the hidden region (log scale)")

    medians = "; ".join(f"{name} {decimals(float(np.median(values)), 4)}" for name, values in errors.items() if len(values))
    marked = f" Level lambda {decimals(level, 4)}." if level is not None else ""
    return both(paint, f"Histogram of errors per image, {subject}. Medians: {medians}.{marked}")


def shares(values: Floats, edges: Floats) -> Floats:
    """Share of the values in each bin; errors of exactly zero count in the first."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / max(1, len(values))


def curves(lines: Sequence[Mapping[str, Any]], labels: Mapping[str, str], *, subject: str) -> Picture | None:
    """Measures of one phase over its steps; None where fewer than two steps were logged.

    Args:
        lines: decoded metrics.jsonl, each with `step`; other keys that contain `loss` or `error` are drawn.
        labels: key -> words for the legend; keys without words are shown as they are.
        subject: which phase this is, for the text alternative.
    """
    keys = [key for key in dict.fromkeys(key for line in lines for key in line) if "loss" in key or "error" in key]
    series = {key: [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)] for key in keys}
    series = {key: points for key, points in series.items() if len(points) > 1}
    if not series:
        return None

    def paint(axes: Axes, palette: Palette) -> None:
        colours = (palette.unlearned, palette.original, palette.ink, palette.retrained)
        for number, (key, points) in enumerate(series.items()):
            steps, values = zip(*points, strict=True)
            dash = ("-", "--", "-.", ":")[number // len(colours) % 4]
            label = labels.get(key, key.replace("_", " "))
            axes.plot(steps, values, color=colours[number % len(colours)], linestyle=dash, linewidth=1.6, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("step")

    ends = "; ".join(f"{labels.get(key, key)} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for key, points in series.items())
    return both(paint, f"Curves of {subject}: {ends}.")


def both(paint: Any, alt: str, *, columns: int = 4) -> Picture:
    """What `paint(axes, palette)` draws, for light and for dark pages; the legend has so many columns at most."""
    return Picture(light=_svg(paint, LIGHT, columns), dark=_svg(paint, DARK, columns), alt=alt)


def _svg(paint: Any, palette: Palette, columns: int) -> bytes:
    theme: dict[Any, Any] = {
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
    }
    with matplotlib.rc_context({**STYLE, **theme, "axes.edgecolor": palette.faint}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        paint(axes, palette)
        axes.grid(axis="y", color=palette.faint, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        handles = axes.get_legend_handles_labels()[0]
        figure.legend(loc="outside upper left", ncols=min(len(handles), columns), frameon=False, fontsize=8.5, handlelength=1.8)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # The reader's own typeface; it is narrower than the one that was measured, so nothing collides.
    return stream.getvalue().replace(b"'DejaVu Sans'", b"system-ui, 'Segoe UI', Roboto, sans-serif")
