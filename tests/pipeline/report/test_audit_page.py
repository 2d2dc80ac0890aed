import base64
import dataclasses
import re

import numpy as np
import pytest

from pipeline.findings import OVER, Audit, Finding, Series
from pipeline.report import audit_page
from pipeline.report.audit_page import ALONE, BLUNT, LIKE_KEPT, VERDICTS, Drawn, render
from pipeline.report.plots import Picture
from tests.pipeline.report.test_page import HOSTILE, Reader

PIXELS = b"\x89PNG not really"


@pytest.fixture(autouse=True)
def plain_plots(monkeypatch):
    """Plots that only name what they are given: drawing takes half a second each."""
    monkeypatch.setattr(audit_page, "roc_curves", lambda curves, **more: stub(f"roc {sorted(curves)} {more}"))
    monkeypatch.setattr(audit_page, "null_histogram", lambda null, observed, **more: stub(f"null {len(null)} {observed} {more}"))


def stub(alt):
    return Picture(light=b"<svg/>", dark=b"<svg/>", alt=alt)


def line(subject="unlearned", says="not told apart", value=0.01, **more):
    given = {"attack": "relearn", "group": "Trouser", "measure": "log ratio", "samples": 40, **more}
    if value is not None:
        given = {"low": value - 0.1, "high": value + 0.1, "kept_low": -0.05, "kept_high": 0.06, **given}
    return Finding(subject=subject, says=says, value=value, **given)


def series(subject="unlearned", **more):
    given = {"attack": "relearn", "group": "Trouser", "score": "minus its loss", "own": (1.0, 2.0), "other": (0.5,)}
    given |= {"statistic": "log ratio", "null": (-0.1, 0.1), "observed": 0.01, **more}
    return Drawn(series=Series(subject=subject, **given), rates=(np.array([1.0]), np.array([1.0])) if given["other"] else None)


def audit(*findings, passed=True, words="by 1 attacks"):
    return Audit(run_id="r", weights_sha256="0" * 64, findings=findings, passed=passed, words=words, confidence=0.95)


def page(*findings, drawn=(), images=None, planted=None, **more):
    text = render(audit(*findings, **more), drawn, images or {}, planted)
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and len(set(reader.ids)) == len(reader.ids)
    return text, reader


ALL = (line("original", "still there", -0.5), line(OVER, "over-forgotten", 2.0), line())


def test_the_page_is_self_contained_and_in_order():
    drawn = [series(name) for name in ("original", OVER, "unlearned")]
    text, reader = page(*ALL, drawn=drawn, images={"Trouser": PIXELS}, planted=b"2" + PIXELS)
    for tag, attrs in reader.tags:
        assert tag not in ("script", "link", "iframe", "base", "form") and not any(name.startswith("on") for name in attrs)
        for name in ("src", "srcset"):
            assert attrs.get(name, "data:").startswith("data:")
        if tag == "a":
            assert attrs["href"].startswith("#") and attrs["href"][1:] in reader.ids
        if tag == "img":
            assert attrs["alt"]
    assert reader.headings[0] == 1 and reader.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(reader.headings, reader.headings[1:], strict=False))
    assert "url(" not in text and "@import" not in text
    for picture in (PIXELS, b"2" + PIXELS):
        assert text.count(base64.b64encode(picture).decode()) == 1
    assert [m[1] for m in re.finditer(r'aria-hidden="true"></i>([\w-]+)', text)] == ["unlearned", "original", OVER]


def test_plots_hold_every_model_and_the_shade_only_in_the_same_units():
    _, reader = page(*ALL, drawn=[series("original", observed=-0.5), series()])
    alts = [attrs["alt"] for tag, attrs in reader.tags if tag == "img"]
    assert len(alts) == 2 and "roc ['original', 'unlearned'] {'least': 0.5" in alts[0]
    assert "null 2 {'unlearned': 0.01, 'original': -0.5}" in alts[1] and "'kept': (-0.05, 0.06)" in alts[1]
    _, reader = page(*ALL, drawn=[series(observed=0.77)])
    assert [attrs["alt"] for tag, attrs in reader.tags if tag == "img" and "'kept': None" in attrs["alt"]]


@pytest.mark.parametrize(
    ("drawn", "pictures"),
    [([], 0), ([series(other=())], 1), ([series(null=(), observed=None)], 1), ([series(), series(score="another")], 4)],
)
def test_missing_parts_are_left_out(drawn, pictures):
    text, reader = page(line(), drawn=drawn)
    assert sum(tag == "img" for tag, _ in reader.tags) == pictures
    assert 'id="planted"' not in text and "What the models make of such images" not in text


def test_an_attack_that_was_not_computed_says_why_and_has_no_table():
    text, _ = page(line(says="not computed", value=None, note="3 forget images", measure=""), passed=None)
    assert "3 forget images" in text and "No attack had the power to judge this model" in text
    assert "kept images give" not in text.partition('id="group-1"')[2].partition('id="read"')[0]


@pytest.mark.parametrize("says", sorted(VERDICTS))
def test_each_verdict_is_in_words(says):
    text, _ = page(line(says=says, attack="extraction"))
    short, words = VERDICTS[says]
    assert f"<h3>Extraction: {short}</h3>" in text and words in text and ALONE not in text


def test_an_attack_that_cries_wolf_is_by_itself_no_refutation():
    text, _ = page(line(says="still there", attack="relearn"))
    assert "Something of the images seems to be in the model." in text and ALONE in text and "This refutes" not in text
    assert ALONE not in page(line(says="not told apart", attack="relearn"))[0]
    several = page(line(says="still there", attack="relearn", trainings=5))[0]
    assert ALONE not in several and "This refutes forgetting" in several


def test_an_attack_can_refute_and_never_prove():
    for passed, summary in (
        (True, "No attack with power tells"),
        (False, "The forgotten images give themselves away"),
        (None, "power to judge"),
    ):
        text, _ = page(line(), passed=passed)
        assert summary in text and "An attack can refute forgetting; it can never prove it." in text
    assert "proves nothing" in text


def test_a_pass_that_is_blind_to_over_forgetting_says_so():
    assert BLUNT in page(line(), line(OVER, "not told apart", 0.0))[0]
    assert BLUNT not in page(*ALL)[0]


@pytest.mark.parametrize(
    ("value", "says", "told"), [(0.5, "not told apart", True), (0.5, "still there", False), (0.01, "no power", False)]
)
def test_a_model_that_is_apart_on_kept_images_too_is_said_to_be(value, says, told):
    assert (LIKE_KEPT in page(line(says=says, value=value))[0]) == told


def test_epsilon_is_spoken_of_only_where_it_was_bounded():
    text, _ = page(*ALL)
    assert "No attack here bounds an ε" in text and "exceeded" not in text
    bounded = dataclasses.replace(line(attack="canary"), epsilon_low=0.731)
    text, _ = page(bounded, dataclasses.replace(bounded, group="h", epsilon_low=0.2), line("original", epsilon_low=9.0))
    assert (
        "exceeded <b>ε<sub>LB</sub> = 0.73</b> at 95 % (2 lower bounds, each at 95 % by itself). There is no upper bound." in text
    )
    assert "<h3>Canaries: not found</h3>" in text


def test_hostile_names_are_text():
    hostile = dataclasses.replace(line(), group=HOSTILE, attack=HOSTILE, measure=HOSTILE, subject=HOSTILE)
    text, _ = page(hostile, drawn=[series(HOSTILE, group=HOSTILE, attack=HOSTILE, score=HOSTILE)], images={HOSTILE: PIXELS})
    assert "<script" not in text and "evil.example" in text


def test_same_findings_same_page():
    assert page(*ALL, drawn=[series()])[0] == page(*ALL, drawn=[series()])[0]
