import numpy as np
import pytest

from pipeline.decode import canonical
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.distribution import View, figures, names
from pipeline.evaluation.extractors import Absent, Description
from pipeline.evaluation.frechet import MINIMUM
from pipeline.evaluation.perceptual import Encoded, paired_names
from pipeline.evaluation.summary import SUBJECTS
from pipeline.records import Evaluation

HOW = Resampling(seed=0, resamples=30, confidence=0.95)
PLACES = [("forget", "g"), ("unseen", "g"), ("retain", ""), ("unseen_retain", "")]


def encoded(rng, extractor, num, shift, truth):
    classes = extractor in ("inception", "efflite0")
    return Encoded(
        features=np.float32(rng.normal(size=(num, 4)) + shift),
        logits=np.float32(rng.normal(size=(num, 6))) if classes else None,
        distances={} if truth else {name: rng.uniform(size=num) for name in paired_names(extractor)},
    )


def view(extractor="efflite0", subjects=SUBJECTS, num=40, empty=()):
    rng = np.random.default_rng(0)
    sizes = {place: 0 if place[0] in empty else num for place in PLACES}
    about = Description(name=extractor, width=4, size=8, mean=(0.5,) * 3, std=(0.5,) * 3, weights_sha256="ab12cd34" * 8)
    return View(
        extractor=about,
        truth={place: encoded(rng, extractor, sizes[place], 0, True) for place in PLACES},
        answers={
            subject: {place: encoded(rng, extractor, sizes[place], shift, False) for place in PLACES}
            for shift, subject in enumerate(subjects)
        },
    )


def of(subject, *arguments, **options):
    results = figures(subject, view(*arguments, **options), PLACES, HOW)
    assert len({(r.name, r.split, r.group) for r in results}) == len(results)
    canonical(Evaluation(subject=subject, results=results))
    return Evaluation(subject=subject, results=results)


@pytest.mark.parametrize("extractor", ["inception", "clip", "dinov2", "efflite0"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_named_figure_is_there_and_those_without_value_say_why(extractor, subject):
    found = of(subject, extractor)
    for place in PLACES:
        assert {r.name for r in found.results if (r.split, r.group) == place} == set(names(extractor, place, subject))
    for result in found.results:
        frechet = result.name.startswith(("fd", "fid"))
        assert (result.value is None) == frechet
        if frechet:
            assert "40 images are too few" in result.note and "KID" in result.note
        else:
            assert result.low <= result.value <= result.high and result.samples == 40
            assert "resize bilinear antialias to 8x8, range -1.00 to 1.00, weights sha256 ab12cd34" in result.note


def test_names_say_what_they_are():
    assert names("efflite0", ("forget", "g"), "unlearned") == (
        "kid_efflite0",
        "kid_to_retrained_efflite0",
        "kid_to_unseen_efflite0",
        "fd_efflite0",
        "class_score_efflite0",
        "cosine_efflite0",
        "lpips_like_efflite0",
    )
    found = names("inception", ("retain", ""), "retrained")
    assert found == ("kid_inception", "fid_inception", "inception_score", "cosine_inception")


def test_the_nearer_model_is_nearer():
    one, other = (of(subject).find("kid_to_retrained_efflite0", "forget", "g") for subject in ("original", "unlearned"))
    assert one.value > other.value > 0 and one.better == "lower"
    assert of("unlearned").find("kid_efflite0", "forget", "g").better == "reference"
    assert of("unlearned").find("kid_efflite0", "retain", "").better == "lower"
    assert of("unlearned").find("class_score_efflite0", "retain", "").better == "higher"


def test_enough_images_have_all_frechet_distances():
    results = figures("unlearned", view("inception", num=MINIMUM), PLACES[:1], HOW)
    found = {result.name: result for result in results}
    for infix in ("", "to_retrained_", "to_unseen_"):
        result = found[f"fid_{infix}inception"]
        assert result.low <= result.value <= result.high and result.samples == MINIMUM and "jackknife" in result.note


def test_without_the_retrained_model_the_rest_is_computed():
    found = of("unlearned", subjects=("original", "unlearned"))
    assert found.find("kid_to_retrained_efflite0", "forget", "g").note == "not computed: no retrained model"
    assert found.find("kid_efflite0", "forget", "g").value is not None
    nothing = of("retrained", subjects=("original", "unlearned"))
    assert {r.note for r in nothing.results} == {"not computed: no retrained model"}


def test_empty_and_tiny_splits_say_so():
    found = of("unlearned", empty=("unseen",))
    assert found.find("kid_efflite0", "unseen", "g").note == "not computed: no images in this split"
    assert "0 images" in found.find("kid_to_unseen_efflite0", "forget", "g").note
    tiny = of("unlearned", num=1)
    assert "1 images" in tiny.find("kid_efflite0", "retain", "").note
    assert tiny.find("class_score_efflite0", "retain", "").value is None
    assert tiny.find("cosine_efflite0", "retain", "").value is not None


def test_an_absent_extractor_has_every_figure_with_the_cure():
    results = figures("unlearned", Absent(name="efflite0", why="install it"), PLACES, HOW)
    assert {r.note for r in results} == {"not computed: install it"}
    assert [r.name for r in results if r.split == "retain"] == list(names("efflite0", ("retain", ""), "unlearned"))
