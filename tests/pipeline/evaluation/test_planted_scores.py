"""Laws of each attack (sign, mirror, size under fair coins) with losses, gradients and answers that are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.decode import canonical
from pipeline.errors import CheckpointError
from pipeline.evaluation.epsilon_bound import one_run_epsilon
from pipeline.evaluation.planted_scores import backdoor_scores, canary_scores, poison_scores, with_power
from pipeline.evaluation.relearn import Views
from pipeline.findings import Finding, Found
from pipeline.models.base import ImageModel, paste

stats = pytest.importorskip("scipy.stats")
SIZE, TAU = 6, 0.1


def canaries(heads, tails, *, delta=1e-5, subject="unlearned", confidence=0.95) -> Finding:
    heads, tails = (np.array(losses, dtype=np.float64) for losses in (heads, tails))
    found = canary_scores(heads, tails, group="planted", subject=subject, delta=delta, confidence=confidence)
    return found.findings[0]


# Canaries.

losses = st.lists(st.integers(0, 20), min_size=12, max_size=40)


@settings(deadline=None, max_examples=30)
@given(losses, losses)
def test_heads_and_tails_exchanged_turn_the_sign_also_where_losses_are_equal(heads, tails):
    there, back = canaries(heads, tails), canaries(tails, heads)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
    assert there.epsilon_low == back.epsilon_low and there.low <= there.value <= there.high
    turned = {"still there": "over-forgotten", "over-forgotten": "still there"}
    assert there.says == turned.get(back.says, back.says)


@settings(deadline=None, max_examples=30)
@given(losses, losses, st.floats(0.1, 9), st.floats(-5, 5))
def test_only_the_order_of_the_losses_counts(heads, tails, scale, shift):
    heads, tails = np.array(heads), np.array(tails)
    assert canaries(heads, tails) == canaries(scale * heads + shift, scale * tails + shift)


@pytest.mark.parametrize(("sign", "says"), [(1, "still there"), (-1, "over-forgotten")])
def test_all_right_shows_the_one_run_epsilon_at_half_the_error(sign, says):
    rng = np.random.default_rng(0)
    found = canaries(sign * rng.uniform(0, 1, 50), sign * rng.uniform(1, 2, 50))
    expected = one_run_epsilon(canaries=100, guesses=50, right=50, delta=1e-5, confidence=0.975)
    assert found.epsilon_low == expected > 2 and found.says == says and found.value == -0.5 * sign
    assert f"50 of 50 guesses about 100 canaries right, taking {'lower' if sign > 0 else 'higher'}" in found.note
    assert f"epsilon {expected:.2f}" in found.note


def test_fair_coins_are_flagged_at_most_as_often_as_the_confidence_says():
    """Exactly: each count of right guesses, weighed with its chance."""
    num, guesses = 60, 30
    chances, flagged, refuted = stats.binom.pmf(range(guesses + 1), guesses, 0.5), [], []
    for right in range(guesses + 1):
        low = right // 2
        # `low` of the lowest 15 losses and right - low of the highest 15 are guessed right.
        trained = np.zeros(num, dtype=bool)
        trained[:low], trained[45 : 60 - (right - low)] = True, True
        found = canaries(np.flatnonzero(trained), np.flatnonzero(~trained), delta=0.0)
        assert found.value == pytest.approx(0.5 - right / guesses)
        flagged.append(found.says != "not told apart")
        refuted.append(found.epsilon_low > 0)
    assert flagged == refuted and 0.03 < chances @ flagged <= 0.05


def test_right_guesses_of_fair_coins_are_binomial_and_fewer_where_losses_are_equal():
    rng = np.random.default_rng(1)
    right = np.empty((2, 160))
    for audit in range(160):
        coins, drawn = rng.random(24) < 0.5, rng.normal(size=24)
        for row, seen in enumerate((drawn, drawn.round())):
            found = canaries(seen[coins], seen[~coins])
            right[row, audit] = found.note.split()[0] if "lower" in found.note else 12 - int(found.note.split()[0])
    counts = np.bincount(right[0].astype(int), minlength=13)
    groups = np.split(np.arange(13), [4, 5, 6, 7, 8, 9])
    expected = [160 * stats.binom.pmf(places, 12, 0.5).sum() for places in groups]
    assert stats.chisquare([counts[places].sum() for places in groups], expected).pvalue > 1e-3
    assert canaries(np.zeros(20), np.zeros(20)).says == "not told apart"
    assert canaries(np.zeros(20), np.zeros(20)).epsilon_low == 0


def test_canary_interval_is_clopper_and_pearsons_and_the_series_hold_the_figures():
    heads, tails = np.arange(20.0), np.arange(20.0) + 4.5
    found = canary_scores(heads, tails, group="planted", subject="unlearned", delta=1e-5, confidence=0.9)
    finding, series = found.findings[0], found.series[0]
    exact = stats.binomtest(round(20 * (0.5 - finding.value)), 20).proportion_ci(0.9, method="exact")
    assert (finding.low, finding.high) == pytest.approx((0.5 - exact.high, 0.5 - exact.low))
    assert series.own == tuple(-heads) and series.other == tuple(-tails)
    assert series.observed == pytest.approx(0.5 - finding.value)
    assert len(series.null) > 300 and np.mean(series.null) == pytest.approx(0.5, abs=0.03)
    assert finding.samples == 40 and canonical(found)


def test_too_few_canaries_are_told_how_many_it_takes():
    found = canaries(np.zeros(5), np.ones(5))
    assert (found.says, found.value, found.note) == ("not computed", None, "10 canaries, and it takes 12")
    assert canaries(np.zeros(6), np.ones(6)).says == "still there"
    assert "no number" in canaries(np.zeros(50), np.ones(50), delta=0.4).note
    assert canaries([], []).says == "not computed"


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(CheckpointError, match="original"):
        canaries([math.nan] * 20, [0.0] * 20, subject="original")


# Secret noise.


def clean(num: int, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    region = torch.zeros(num, 1, SIZE, SIZE, dtype=torch.bool)
    region[:, :, 2:5, 2:5] = True
    truth = torch.rand(num, 1, SIZE, SIZE, generator=generator)
    return Views(visible_BCHW=truth.masked_fill(region, 0.5), target_BCHW=truth, region_B1HW=region, draws_B=torch.arange(num))


class Remembering(ImageModel):
    """Answers with what it remembers of each draw, and asks that all visible pixels be those it remembers too."""

    def __init__(self, memory_BCHW: Tensor, *, pixels: bool = True) -> None:
        super().__init__()
        self.memory, self.pixels = nn.Parameter(memory_BCHW.clone()), pixels

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
        known = self.memory[draws_B]
        if not self.pixels:
            return known.square().flatten(1).mean(1)
        return (known - paste(target_BCHW, visible_BCHW, region_B1HW)).square().flatten(1).mean(1)

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        return paste(self.memory[draws_B], visible_BCHW, region_B1HW)

    def encoder(self) -> tuple[nn.Module, ...]:
        return ()

    def bottleneck(self) -> tuple[nn.Module, ...]:
        return ()


def poisoned(num: int, trace: float, seed: int = 0, **more) -> Found:
    """Judge a model that remembers images with a share of their noise, beside errors of its own."""
    views, generator = clean(num), torch.Generator().manual_seed(seed)
    noise, errors = (TAU * torch.randn(views.target_BCHW.shape, generator=generator) for _ in range(2))
    model = Remembering(views.target_BCHW + trace * noise + errors)
    more = {"group": "planted", "subject": "unlearned", "seed": 0, "tau": TAU, **more}
    return poison_scores(model, views, noise, **more)


@pytest.mark.parametrize(("trace", "says"), [(1.0, "still there"), (-1.0, "over-forgotten")])
def test_remembered_noise_is_still_there_and_avoided_noise_over_forgotten(trace: float, says: str) -> None:
    found = poisoned(16, trace)
    finding, series = found.findings[0], found.series[0]
    assert finding.says == says and finding.samples == 16 and finding.epsilon_low is None
    # The gradient holds the noise and an error of the same size, at all pixels whether visible or asked for.
    assert finding.value == pytest.approx(-trace * SIZE / math.sqrt(2), rel=0.1)
    assert np.mean(series.own) == pytest.approx(-finding.value) and abs(np.mean(series.other)) < 1
    assert series.observed == finding.value and canonical(found)


def test_noise_without_a_trace_is_flagged_at_the_nominal_rate() -> None:
    flagged = sum(poisoned(8, 0.0, seed).findings[0].says != "not told apart" for seed in range(100))
    assert stats.binom.ppf(1e-4, 100, 0.05) <= flagged <= stats.binom.isf(1e-4, 100, 0.05)


def test_batches_do_not_matter_and_the_model_is_left_alone() -> None:
    views = clean(10)
    noise, model = TAU * torch.randn(views.target_BCHW.shape), Remembering(views.target_BCHW + 0.1)
    asked = {"tau": TAU, "group": "g", "subject": "original", "seed": 0}
    assert poison_scores(model, views, noise, **asked, batch_size=3) == poison_scores(model, views, noise, **asked)
    assert model.memory.grad is None


def test_a_loss_without_pixels_and_single_images_are_not_computed() -> None:
    views = clean(5)
    codes = Remembering(views.target_BCHW, pixels=False)
    asked = {"tau": TAU, "group": "g", "subject": "original", "seed": 0}
    for frozen in (False, True):
        found = poison_scores(codes.requires_grad_(not frozen), views, torch.zeros_like(views.target_BCHW), **asked)
        assert found.findings[0].says == "not computed" and "0 of 5 images" in found.findings[0].note
    assert poisoned(1, 1.0).findings[0].note == "1 of 1 images have a gradient, and it takes 2"
    with pytest.raises(CheckpointError, match="original"):
        poison_scores(Remembering(views.target_BCHW * math.nan), views, views.target_BCHW, **asked)


# Trigger and pattern.

PATTERN = torch.full((1, 1, SIZE, SIZE), 2.0)


def answering(views: Views, hits: int) -> Remembering:
    """Answers the first `hits` images with the pattern, the others with their truth."""
    return Remembering(torch.cat([PATTERN.expand(hits, -1, -1, -1), views.target_BCHW[hits:]]))


def test_regenerated_patterns_are_still_there_beside_a_model_that_never_saw_them() -> None:
    views = clean(30)
    models = {name: answering(views, hits) for name, hits in {"original": 28, "unlearned": 1, "retrained": 2, "far": 30}.items()}
    found = backdoor_scores(models, views, PATTERN, group="planted")
    by_name = {finding.subject: finding for finding in found.findings}
    assert {name: finding.says for name, finding in by_name.items()} == {
        "original": "still there",
        "unlearned": "not told apart",
        "far": "still there",
    }
    assert by_name["original"].value == pytest.approx((2 - 28) / 30) and by_name["unlearned"].value == pytest.approx(1 / 30)
    assert (
        by_name["original"].note.startswith("pattern regenerated: 0.933 (0.77") and "retrained 0.067" in by_name["original"].note
    )
    series = found.series[0]
    assert (np.array(series.own) > 0).sum() == 28 and (np.array(series.other) > 0).sum() == 2
    assert series.observed == pytest.approx(26 / 30) and abs(np.mean(series.null)) < 0.05 and canonical(found)


def test_models_exchanged_turn_the_sign() -> None:
    views = clean(30)
    there = backdoor_scores({"a": answering(views, 20), "retrained": answering(views, 5)}, views, PATTERN, group="g").findings[0]
    back = backdoor_scores({"a": answering(views, 5), "retrained": answering(views, 20)}, views, PATTERN, group="g").findings[0]
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert (there.says, back.says) == ("still there", "over-forgotten")


def test_only_the_hidden_region_is_compared() -> None:
    views = clean(10)
    models = {"a": answering(views, 10), "retrained": answering(views, 0)}
    elsewhere = paste(PATTERN.expand(10, -1, -1, -1), torch.rand(10, 1, SIZE, SIZE), views.region_B1HW)
    assert backdoor_scores(models, views, elsewhere, group="g") == backdoor_scores(models, views, PATTERN, group="g")


def test_a_missing_reference_and_too_few_images_are_not_computed() -> None:
    views = clean(5)
    models = {"original": answering(views, 5), "retrained": answering(views, 0)}
    assert [item.note for item in backdoor_scores(models, views, PATTERN, group="g").findings] == ["5 images, and it takes 6"]
    views = clean(8)
    found = backdoor_scores({"original": answering(views, 5)}, views, PATTERN, group="g")
    assert [(item.says, item.note) for item in found.findings] == [("not computed", "no retrained model to compare with")]


# Power.


def judged(subject: str, says, attack: str = "canary") -> Found:
    return Found(findings=(Finding(attack=attack, group="g", subject=subject, measure="", says=says),))


def test_a_pass_without_the_original_found_has_no_power_and_a_flag_stands() -> None:
    for original, expected in (("still there", "not told apart"), ("not told apart", "no power"), ("over-forgotten", "no power")):
        found = with_power({"original": judged("original", original), "unlearned": judged("unlearned", "not told apart")})
        assert [item.says for item in found.findings] == [original, expected]
    found = with_power({"a": judged("original", "not told apart"), "b": judged("unlearned", "still there")})
    assert found.findings[1].says == "still there"
    assert with_power(judged("unlearned", "not told apart")).findings[0].says == "no power"


def test_one_attacks_power_is_not_anothers() -> None:
    other = judged("unlearned", "not told apart", "poison")
    found = with_power({"a": judged("original", "still there"), "b": other})
    assert found.findings[1].says == "no power"
    both = Found(findings=(*judged("original", "still there").findings, *judged("unlearned", "not told apart").findings))
    assert with_power(both) == both
    series = poisoned(4, 0.0).series
    assert with_power(dataclasses.replace(both, series=series)).series == series
