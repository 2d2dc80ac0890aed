import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pipeline.findings import OVER
from pipeline.report import audit_plots
from pipeline.report.audit_plots import found_at, null_histogram, roc_curves
from pipeline.report.plots import LIGHT, Picture

CURVES = {
    "unlearned": (np.array([0.01, 0.1, 1.0]), np.array([0.02, 0.3, 1.0])),
    "original": (np.array([0.01, 1.0]), np.array([0.9, 1.0])),
    OVER: (np.array([1.0]), np.array([1.0])),
}
NULL = np.linspace(-0.1, 0.1, 201)
OBSERVED = {"unlearned": -0.05, "original": -0.4, OVER: 30.0}


@pytest.fixture
def painted(monkeypatch):
    """Axes with what a plot paints, and its text alternative."""

    def draw(plot, *given, **more):
        kept = {}
        with monkeypatch.context() as patch:
            patch.setattr(
                audit_plots, "both", lambda paint, alt, **_: kept.update(paint=paint) or Picture(light=b"", dark=b"", alt=alt)
            )
            alt = plot(*given, **more).alt
        axes = Figure().add_subplot()
        kept["paint"](axes, LIGHT)
        return axes, alt

    return draw


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_both_axes_of_a_roc_are_logarithmic_and_chance_is_the_diagonal(painted):
    axes, alt = painted(roc_curves, CURVES, least=0.01, subject="Trouser")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = lines(axes)
    assert drawn["chance"].tolist() == [[0.01, 0.01], [1, 1]]
    for name, rates in CURVES.items():
        assert drawn[name].tolist() == np.column_stack(rates).tolist()
    assert 0.009 < axes.get_xlim()[0] < 0.01 and 0.009 < axes.get_ylim()[0] < 0.01 and axes.get_xlim()[1] > 1
    assert "unlearned 0.020 and 0.300; original 0.900 and 0.900; over-ascended 0.000 and 0.000" in alt and "Trouser" in alt


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=20, unique=True), st.floats(0.001, 1))
def test_a_rate_is_read_off_the_step_at_its_left(wrong, at):
    wrong = np.sort(np.array(wrong))
    rates = (wrong, np.linspace(0.5, 1, len(wrong)))
    reached = rates[1][wrong <= at * (1 + 1e-9)]
    assert found_at(rates, at) == (reached[-1] if len(reached) else 0.0)


def test_a_null_histogram_shows_draws_models_and_shade_and_what_is_far_at_the_edge(painted):
    axes, alt = painted(null_histogram, NULL, OBSERVED, kept=(-0.02, 0.03), statistic="log ratio", subject="Trouser")
    drawn = lines(axes)
    left, right = axes.get_xlim()
    assert {name: points[0][0] for name, points in drawn.items() if name in OBSERVED} == pytest.approx(
        {"unlearned": -0.05, "original": -0.4, OVER: right}
    )
    assert left < -0.4 and 0.5 < right < 0.7, "the draws keep a width"
    (bars,) = (patch for patch in axes.patches if patch.get_label() == "nothing left")
    assert bars.get_data().values.sum() == pytest.approx(1)
    assert (bars.get_data().edges[0], bars.get_data().edges[-1]) == pytest.approx((-0.1, 0.1))
    assert any(patch.get_label() == "kept images" for patch in axes.patches)
    assert "−0.100 to 0.100 where nothing is left" in alt and "over-ascended 30.000" in alt and "−0.020 to 0.030" in alt


@pytest.mark.parametrize("observed", [{"unlearned": 0.0}, {"unlearned": -0.3, "original": -0.3}, {}])
def test_draws_that_are_all_the_same_are_one_bar(painted, observed):
    axes, alt = painted(null_histogram, np.zeros(9), observed, kept=None, statistic="s", subject="x")
    (bars,) = axes.patches
    assert bars.get_data().values.tolist() == [1.0] and axes.get_xlim()[0] < 0 < axes.get_xlim()[1]
    assert "Kept" not in alt


def test_plots_are_svg_in_two_colours_and_always_the_same():
    for plot in (
        lambda: roc_curves(CURVES, least=0.01, subject="<b>"),
        lambda: null_histogram(NULL, OBSERVED, kept=None, statistic="$x_{", subject="<b>"),
    ):
        made = [plot() for _ in range(2)]
        assert made[0] == made[1] and made[0].light != made[0].dark
        assert ElementTree.fromstring(made[0].light).tag.endswith("svg") and b"<b>" not in made[0].light
