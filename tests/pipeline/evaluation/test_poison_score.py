import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.evaluation import poison_score as module
from pipeline.evaluation.poison_score import poison_score

stats = pytest.importorskip("scipy.stats")
TAU = 0.1


def pairs(rng, *, num=40, size=30, trace=0.0, tau=TAU):
    noise = rng.normal(0, tau, (num, size))
    return noise, rng.normal(0, 1, (num, size)) + trace * noise / tau


def judge(noise, gradients, **options):
    return poison_score(noise, gradients, **{"tau": TAU, "seed": 0, "permutations": 99, **options})


def exceeds_level(rejections: int, audits: int, level: float) -> bool:
    return rejections > stats.binom.isf(1e-4, audits, level)


# Laws under the null.


def test_exact_p_values_of_pure_noise_are_uniform():
    rng = np.random.default_rng(1)
    found = [judge(*pairs(rng), permutations=1).p_exact for _ in range(1000)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("num", [3, 6, 40])
@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_permuted_p_values_of_pure_noise_are_valid(num, shared):
    """Also for few images and for gradients that resemble each other, where permutations without fixed places are not."""
    rng, audits = np.random.default_rng(2), 1500
    found = np.empty(audits)
    for audit in range(audits):
        noise, gradients = pairs(rng, num=num)
        found[audit] = judge(noise, gradients + shared, seed=audit, permutations=39).p_permuted
    for level in (0.05, 0.25, 0.5, 0.75):
        assert not exceeds_level(int((found <= level).sum()), audits, level), level
    if num == 40:
        assert stats.binom.ppf(1e-4, audits, 0.25) <= (found <= 0.25).sum()  # and not so by being blunt


def test_permutations_hold_where_the_stored_noise_is_not_normal_and_the_normal_null_does_not():
    """Its negative half is cut off, the rest is rounded, and tau is told wrong."""
    rng, audits = np.random.default_rng(3), 600
    exact, permuted = np.empty(audits), np.empty(audits)
    for audit in range(audits):
        noise, gradients = pairs(rng)
        noise = np.round(np.maximum(noise, 0) * 20) / 20
        found = judge(noise, gradients, seed=audit, tau=TAU / 3)
        exact[audit], permuted[audit] = found.p_exact, found.p_permuted
    assert exceeds_level(int((exact <= 0.05).sum()), audits, 0.05)
    assert not exceeds_level(int((permuted <= 0.05).sum()), audits, 0.05)


def test_noise_must_be_what_was_drawn_and_not_the_difference_of_the_stored_images():
    """Black and white images, gradients that follow the image and know nothing of the noise."""
    rng, audits = np.random.default_rng(12), 200
    rejected = np.zeros((2, 2), dtype=int)
    for audit in range(audits):
        drawn, gradients = pairs(rng)
        images = rng.integers(0, 2, drawn.shape).astype(float)
        stored = np.clip(images + drawn, 0, 1) - images
        for row, noise in enumerate((drawn, stored)):
            found = judge(noise, gradients + images - 0.5, seed=audit)
            rejected[row] += (found.p_exact <= 0.05, found.p_permuted <= 0.05)
    assert not exceeds_level(int(rejected[0].max()), audits, 0.05)
    assert rejected[1].min() > audits / 2


# Laws under a trace.


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trace_is_found_from_both_sides_by_both_nulls(sign):
    found = judge(*pairs(np.random.default_rng(4), trace=sign * 0.5), permutations=999)
    assert found.p_exact < 1e-6 and found.p_permuted == 1 / 1000 and math.copysign(1, found.z) == sign


def test_a_mean_of_detectable_size_is_found_in_half_of_all_audits():
    rng, audits = np.random.default_rng(5), 1000
    size, num = 3000, 25
    wanted = judge(*pairs(rng, num=num)).detectable
    assert wanted == pytest.approx(stats.norm.isf(0.025) / 5)
    rejected = 0
    for _ in range(audits):
        gradients = np.zeros((num, size))
        gradients[:, 0] = 1  # I_i is then the noise's first pixel, whose mean is set to the wanted one
        noise = np.zeros((num, size), dtype=np.float32)
        noise[:, 0] = rng.normal(wanted * TAU, TAU, num)
        rejected += judge(noise[:, :2], gradients[:, :2], permutations=1).p_exact < 0.05
    assert abs(rejected - audits / 2) < 4 * math.sqrt(audits / 4)


def test_two_images_show_nothing_to_permutations_whatever_the_rounding():
    """Their only exchange lies as far from the middle as they do."""
    assert all(judge(*pairs(np.random.default_rng(seed), num=2, trace=3)).p_permuted == 1 for seed in range(50))


def test_gradients_that_all_point_one_way_show_nothing_to_permutations():
    noise, gradients = pairs(np.random.default_rng(6))
    assert judge(noise, np.tile(gradients[:1], (len(noise), 1))).p_permuted == 1


# Laws of the arithmetic.


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 9))
def test_scores_are_those_of_the_definition_and_scale_free_in_the_gradient(seed, num, size):
    rng = np.random.default_rng(seed)
    noise, gradients = pairs(rng, num=num, size=size)
    one = [np.dot(x, g) / (TAU * np.linalg.norm(g)) for x, g in zip(noise, gradients, strict=True)]
    found = judge(noise, gradients)
    assert found.scores == pytest.approx(one)
    assert found.exchanged == pytest.approx(judge(noise, np.roll(gradients, -1, axis=0)).scores)
    assert found.mean == pytest.approx(np.mean(one)) and found.z == pytest.approx(np.sqrt(num) * np.mean(one))
    assert found.p_exact == pytest.approx(2 * stats.norm.sf(abs(found.z)))
    scaled = judge(noise, gradients * 2.0 ** rng.integers(-700, 700, (num, 1)).astype(float))
    assert (scaled.z, scaled.p_permuted) == pytest.approx((found.z, found.p_permuted))
    turned = judge(-noise, gradients)
    assert (turned.z, turned.p_exact, turned.p_permuted) == pytest.approx((-found.z, found.p_exact, found.p_permuted))


def test_permuted_p_value_is_that_of_all_permutations():
    noise, gradients = pairs(np.random.default_rng(7), num=5, trace=0.05)
    scores = noise @ (gradients / np.linalg.norm(gradients, axis=1, keepdims=True)).T
    totals = np.array([scores[range(5), order].sum() for order in itertools.permutations(range(5))])
    away = abs(totals - totals.mean())
    expected = (away >= away[0] - 1e-12).mean()
    assert 0.01 < expected < 0.9
    found = judge(noise, gradients, permutations=40_000).p_permuted
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / 40_000))


def test_one_seed_gives_one_p_value_in_blocks_of_any_size(monkeypatch):
    noise, gradients = pairs(np.random.default_rng(8))
    found = [judge(noise, gradients, seed=seed, permutations=500).p_permuted for seed in (0, 0, 1)]
    monkeypatch.setattr(module, "BLOCK", 300)
    assert judge(noise, gradients, permutations=500).p_permuted == found[0] == found[1] != found[2]


# Gradients that have no direction, and wrong use.


def test_images_without_a_gradient_are_refused_or_left_out_and_named():
    noise, gradients = pairs(np.random.default_rng(9), num=10)
    gradients[[2, 7]] = 0
    with pytest.raises(ConfigError, match=r"2 images are 0 \(first: \[2, 7\]\)"):
        judge(noise, gradients)
    found = judge(noise, gradients, zeros="leave out")
    rest = np.delete(np.arange(10), [2, 7])
    alone = judge(noise[rest], gradients[rest])
    assert found.left_out == (2, 7) and alone.left_out == () and found.pairs == alone.pairs == 8
    assert (found.z, found.p_permuted, found.detectable) == (alone.z, alone.p_permuted, alone.detectable)
    gradients[1:] = 0
    with pytest.raises(ConfigError, match="2 are needed"):
        judge(noise, gradients, zeros="leave out")


def test_small_fp32_gradients_keep_their_direction():
    noise, gradients = pairs(np.random.default_rng(10))
    small = (gradients * 1e-30).astype(np.float32)
    assert judge(noise.astype(np.float32), small).z == pytest.approx(judge(noise, gradients).z, rel=1e-4)


def test_wrong_use_is_refused():
    noise, gradients = pairs(np.random.default_rng(11))
    spoilt = gradients.copy()
    spoilt[3, 0] = np.inf
    with pytest.raises(ConfigError, match=r"not finite \(first: \[3\]\)"):
        judge(noise, spoilt)
    with pytest.raises(ConfigError):
        judge(noise, gradients, confidence=1.0)
    for wrong in ({"tau": 0.0}, {"tau": math.nan}, {"permutations": 0}):
        with pytest.raises(ValueError):
            judge(noise, gradients, **wrong)
    for one, other in ((noise[:5], gradients), (noise[0], gradients[0]), (spoilt, gradients)):
        with pytest.raises(ValueError):
            judge(one, other)
