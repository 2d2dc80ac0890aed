import numpy as np
import pytest

from pipeline.decode import canonical
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.paired import METRICS
from pipeline.evaluation.summary import summarise

HOW = Resampling(seed=0, resamples=50, confidence=0.95)
PLACES = [("forget", "g"), ("unseen", "g"), ("retain", ""), ("unseen_retain", "")]


def scores(*subjects, num=60, empty=()):
    rng = np.random.default_rng(0)
    made = {}
    for subject in subjects:
        made[subject] = {p: {m: rng.uniform(0.1, 1, 0 if p[0] in empty else num) for m in METRICS} for p in PLACES}
    return made


def test_all_figures_with_all_subjects():
    found = summarise(scores("original", "unlearned", "retrained"), PLACES, HOW)
    assert [item.subject for item in found.evaluations] == ["original", "unlearned", "retrained"]
    for item in found.evaluations:
        assert all(result.value is not None for result in item.results)
        assert len({(r.name, r.split, r.group) for r in item.results}) == len(item.results)
    retrained = found.subject("retrained")
    assert retrained.find("error_ratio", "unseen_retain", "").value == pytest.approx(1)
    assert retrained.find("ks", "forget", "g") is None
    assert found.subject("unlearned").find("error_region", "forget", "g").better == "reference"
    assert found.subject("unlearned").find("psnr_image", "retain", "").better == "higher"
    assert found.subject("nobody") is None


def test_without_reference_what_compares_is_none_and_the_rest_is_not():
    found = summarise(scores("original", "unlearned"), PLACES, HOW)
    assert all(r.value is None and "no retrained model" in r.note for r in found.subject("retrained").results)
    for result in found.subject("unlearned").results:
        compares = result.name in ("ks", "ks_detectable", "error_ratio")
        assert (result.value is None) == compares
        assert result.note == ("not computed: no retrained model" if compares else result.note)
    canonical(found)


def test_an_empty_split_gives_notes():
    found = summarise(scores("original", "unlearned", "retrained", empty=("unseen",)), PLACES, HOW).subject("unlearned")
    for name in ("error_region", "ks"):
        assert found.find(name, "unseen", "g").note == "not computed: no images in this split"
    assert found.find("membership", "forget", "g").value is None
    assert found.find("ks", "forget", "g").value is not None


def test_a_reference_without_error_has_no_ratio():
    made = scores("original", "unlearned", "retrained")
    made["retrained"]["unseen_retain", ""]["error_region"][:] = 0
    assert summarise(made, PLACES, HOW).subject("unlearned").find("error_ratio", "unseen_retain", "").value is None
