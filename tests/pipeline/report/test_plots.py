import xml.etree.ElementTree as ElementTree

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.plots import curves, histogram, log_bins, shares


@settings(deadline=None)
@given(st.lists(st.floats(0, 10, allow_subnormal=False), max_size=50).map(lambda v: np.array(v, dtype=float)))
def test_bins_hold_every_value(sample):
    edges = log_bins([sample])
    assert (np.diff(edges) > 0).all()
    if len(sample):
        assert np.isclose(shares(sample, edges).sum(), 1)


def test_plots_are_svg_in_two_colours_and_always_the_same():
    sample = np.geomspace(0.01, 0.1, 50)
    errors = {"retrained": sample, "unlearned": sample * 1.1, "original": sample / 2}
    edges = log_bins(list(errors.values()))
    made = [histogram(errors, edges, top=0.2, level=0.05, subject="Trouser") for _ in range(2)]
    assert made[0] == made[1] and made[0].light != made[0].dark
    assert ElementTree.fromstring(made[0].light).tag.endswith("svg")
    assert "Trouser" in made[0].alt and "original" in made[0].alt


def test_curves_need_two_points_and_take_any_label():
    lines = [{"step": step, "seconds": 1.0, "retain_loss": 1 / step, "forget_loss_0": step} for step in (1, 2, 3)]
    assert curves(lines[:1], {}, subject="x") is None
    assert curves([], {}, subject="x") is None
    made = curves(lines, {"forget_loss_0": "$x_{ <b>"}, subject="Phase 1")
    assert made is not None and b"<b>" not in made.light and "retain_loss" in made.alt
