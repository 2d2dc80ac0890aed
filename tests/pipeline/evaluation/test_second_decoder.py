"""Laws of the regression against second implementations, then what the decoder sees in features whose content is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.decode import canonical
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.membership import verdict
from pipeline.evaluation.relearn import Views
from pipeline.evaluation.second_decoder import (
    PENALTIES,
    WIDTH,
    decoder_answers,
    decoder_errors,
    features,
    project,
    ridge_weights,
    second_decoder,
)
from pipeline.models.autoencoder import Config, build
from pipeline.models.base import ImageModel

HOW = Resampling(seed=3, resamples=200, confidence=0.95)
SIZE = 6


def views(num: int, seed: int) -> Views:
    """Random images with 2 x 2 pixels hidden, at another place in each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num, 1, SIZE, SIZE, generator=generator)
    region = torch.zeros(num, 1, SIZE, SIZE, dtype=torch.bool)
    for place, (row, column) in enumerate(torch.randint(0, SIZE - 1, (num, 2), generator=generator).tolist()):
        region[place, :, row : row + 2, column : column + 2] = True
    draws = torch.arange(num) + 1000 * seed
    return Views(visible_BCHW=images.masked_fill(region, 0.5), target_BCHW=images, region_B1HW=region, draws_B=draws)


RETAINED, FORGET, UNSEEN = views(200, 1), views(40, 2), views(40, 3)


class Remembering(ImageModel):
    """An encoder that answers degraded images that it remembers with the true ones, and others as it sees them."""

    def __init__(self, *remembered: Views) -> None:
        super().__init__()
        self.visible = torch.cat([part.visible_BCHW for part in remembered])
        self.target = torch.cat([part.target_BCHW for part in remembered])

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
        gaps = (visible_BCHW[:, None] - self.visible).abs().flatten(2).sum(2)
        known = (gaps.min(1).values == 0)[:, None, None, None]
        return torch.where(known, self.target[gaps.argmin(1)], visible_BCHW)

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        return visible_BCHW

    def encoder(self) -> tuple[nn.Module, ...]:
        return ()

    def bottleneck(self) -> tuple[nn.Module, ...]:
        return ()


class Telling(Remembering):
    """Features made by a function of the arguments of `forward`."""

    def __init__(self, tell) -> None:
        super().__init__(RETAINED)
        self.tell = tell

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
        assert want == "features"
        return self.tell(visible_BCHW, target_BCHW, region_B1HW, draws_B)


# The regression.

shapes = st.tuples(st.integers(2, 30), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6))


def problem(num: int, width: int, pixels: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(num, width)), rng.normal(size=(num, pixels))
    return x * rng.uniform(0.1, 3, width) + 2, y + x[:, :1], rng.normal(size=(7, width)) + 2


def weights_of(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, float]:
    weights, penalty = ridge_weights(*(torch.from_numpy(part) for part in (x, new, y)))
    return weights.numpy(), penalty


@settings(deadline=None)
@given(shapes)
def test_weights_are_ridge_regression_by_least_squares(shape: tuple[int, int, int, int]) -> None:
    x, y, new = problem(*shape)
    weights, penalty = weights_of(x, y, new)
    # numpy's least squares on data with sqrt(penalty) I below them, as ridge regression is often defined.
    above = np.vstack([x - x.mean(0), math.sqrt(penalty) * np.eye(x.shape[1])])
    below = np.vstack([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))])
    coefficients = np.linalg.lstsq(above, below, rcond=None)[0]
    np.testing.assert_allclose(weights @ y, y.mean(0) + (new - x.mean(0)) @ coefficients, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-9)


@settings(deadline=None)
@given(shapes)
def test_penalty_is_that_of_least_cross_validation(shape: tuple[int, int, int, int]) -> None:
    """By the hat matrix itself, with the mean as one more column."""
    x, y, new = problem(*shape)
    num, width = x.shape
    _, penalty = weights_of(x, y, new)
    centred = x - x.mean(0)
    unit = np.trace(centred.T @ centred) / width

    def score(value: float) -> float:
        hat = centred @ np.linalg.solve(centred.T @ centred + value * np.eye(width), centred.T) + 1 / num
        return num * np.square(y - hat @ y).sum() / (num - np.trace(hat)) ** 2

    found = {value: score(unit * value) for value in PENALTIES}
    nearest = min(PENALTIES, key=lambda value: abs(math.log(unit * value / penalty)))
    assert unit * nearest == pytest.approx(penalty)
    assert found[nearest] <= min(found.values()) * (1 + 1e-2)


def test_features_that_say_nothing_give_the_mean_image() -> None:
    y = np.random.default_rng(0).normal(size=(9, 4))
    weights, _ = weights_of(np.full((9, 3), 0.1), y, np.full((7, 3), 0.1))
    np.testing.assert_allclose(weights @ y, np.tile(y.mean(0), (7, 1)), atol=1e-9)


def test_noise_gets_a_large_penalty_and_truth_a_small_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 30))
    unit = np.square(x - x.mean(0)).sum() / 30
    _, small = weights_of(x, x @ rng.normal(size=(30, 5)), x[:7])
    _, large = weights_of(x, rng.normal(size=(100, 20)), x[:7])
    assert small == pytest.approx(min(PENALTIES) * unit) and large >= unit


# The projection.


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**62))
def test_projection_is_linear_and_a_function_of_the_seed(num: int, width: int, seed: int) -> None:
    rows = torch.rand(3, num, generator=torch.Generator().manual_seed(num), dtype=torch.float64)
    found = project(rows, width, seed)
    assert found.dtype == torch.float64 and found.shape == (3, min(num, width))
    assert torch.equal(found, project(rows.clone(), width, seed))
    assert torch.equal(found[1:2], project(rows[1:2], width, seed))
    torch.testing.assert_close(project(rows[:1] - 2 * rows[1:2], width, seed), found[:1] - 2 * found[1:2])
    if num <= width:
        assert torch.equal(found, rows)


def test_another_seed_projects_otherwise_and_all_keep_inner_products_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 1, 300, generator=generator, dtype=torch.float64)  # without random signs, sums would add up
    pairs = torch.cat([one, other])
    found = [project(pairs, 20, seed) for seed in range(400)]
    assert not torch.equal(found[0], found[1])
    products = np.array([float(part[0] @ part[1]) for part in found])
    assert abs(products.mean() - float((one * other).sum())) < 4 * products.std() / math.sqrt(400)
    lengths = np.array([float(part[0] @ part[0]) for part in found]) / float((one * one).sum())
    # A Gaussian matrix would have the variance 2 / width.
    assert lengths.mean() == pytest.approx(1, abs=0.06) and lengths.var() < 2 * 2 / 20


# What is seen.


def test_features_that_hold_the_hidden_pixels_leave_no_error_and_others_do() -> None:
    model = Remembering(RETAINED, FORGET)
    (forget, unseen), _, width = decoder_errors(model, retained=RETAINED, judged=[FORGET, UNSEEN], seed=0)
    assert width == SIZE**2 and forget.dtype == np.float64 and forget.shape == (40,)
    assert forget.max() < 1e-9
    # An unseen image's hidden pixels are read as the 0.5 that stands there: noise of variance 1 / 12.
    assert unseen.mean() == pytest.approx(1 / 12, rel=0.2)


def test_permuting_images_permutes_errors_and_retained_ones_change_nothing() -> None:
    torch.manual_seed(0)
    model = build(Config(image_size=8, channels=1, width=8, latent=16)).eval()
    big = {name: nn.functional.pad(getattr(FORGET, name), (1, 1, 1, 1)) for name in ("visible_BCHW", "target_BCHW")}
    region = nn.functional.pad(FORGET.region_B1HW, (1, 1, 1, 1))
    padded = Views(**big, region_B1HW=region, draws_B=FORGET.draws_B)
    taught, judged = padded.part(slice(0, 25)), padded.part(slice(25, None))
    order = torch.randperm(len(judged), generator=torch.Generator().manual_seed(1))
    back = torch.arange(len(taught) - 1, -1, -1)
    (found,), _, _ = decoder_errors(model, retained=taught, judged=[judged], seed=0)
    (moved,), _, _ = decoder_errors(model, retained=taught.part(back), judged=[judged.part(order)], seed=0, batch_size=7)
    np.testing.assert_allclose(moved, found[order.numpy()], rtol=1e-5)


def test_errors_are_of_the_region_alone() -> None:
    outside = Views(
        visible_BCHW=FORGET.visible_BCHW,
        target_BCHW=torch.where(FORGET.region_B1HW, FORGET.target_BCHW, torch.zeros(())),
        region_B1HW=FORGET.region_B1HW,
        draws_B=FORGET.draws_B,
    )
    model = Remembering(RETAINED)
    (found, other), _, _ = decoder_errors(model, retained=RETAINED, judged=[FORGET, outside], seed=0)
    assert np.array_equal(found, other)


def test_true_pixels_are_never_shown_and_draws_are_the_same_for_all_images() -> None:
    def tell(visible, target, region, draws):
        assert torch.equal(visible, target)
        assert len(set(draws.tolist())) == 1
        return torch.stack([draws.double(), visible.double().mean(dim=(1, 2, 3))], dim=1)[:, :, None]

    model = Telling(tell)
    model.probe_draws = 3
    one, two = features(model, [RETAINED, FORGET], seed=0, batch_size=16)
    assert one.shape == (200, 6) and two.shape == (40, 6)
    assert torch.equal(one[0, ::2], two[-1, ::2]) and len(set(one[0, ::2].tolist())) == 3


def test_many_features_are_projected_alike_for_all_sets() -> None:
    wide = Telling(lambda visible, target, region, draws: visible.flatten(1).repeat(1, 50))
    one, two = features(wide, [FORGET, FORGET.part(slice(3, 9))], seed=5, batch_size=8)
    assert one.shape == (40, WIDTH) and torch.equal(one[3:9], two)
    assert not torch.equal(features(wide, [FORGET], seed=6)[0], one)


def test_subjects_are_compared_with_the_retrained_model() -> None:
    models = {
        "original": Remembering(RETAINED, FORGET),
        "unlearned": Remembering(RETAINED),
        "retrained": Remembering(RETAINED),
    }
    found = second_decoder(models, retained=RETAINED, forget=FORGET, unseen=UNSEEN, resampling=HOW, label="x")
    original, unlearned, retrained = found["original"], found["unlearned"], found["retrained"]
    assert original.ks.value == 1 and original.ratio.high < 0.01
    assert verdict(original.membership, 40, 40) == "looks trained on"
    assert (unlearned.ks.value, unlearned.ratio.value) == (0, 1)
    assert verdict(unlearned.membership, 40, 40).startswith("indistinguishable")
    assert np.mean(original.errors) == pytest.approx(original.error.value) and len(unlearned.errors) == 40
    assert set(unlearned.null) == {1.0} and min(original.null) < 1 < max(original.null) and retrained.null == ()
    assert retrained.ks is None and retrained.ratio is None and retrained.error == unlearned.error
    assert (original.retained, original.samples, original.unseen_samples, original.width) == (200, 40, 40, SIZE**2)
    assert canonical(found["original"])
    alone = second_decoder(
        {"unlearned": models["unlearned"]}, retained=RETAINED, forget=FORGET, unseen=UNSEEN, resampling=HOW, label="x"
    )
    assert alone["unlearned"].ks is None and alone["unlearned"].membership == unlearned.membership


def test_answers_to_look_at_are_those_that_are_judged() -> None:
    model = Remembering(RETAINED)
    answers = decoder_answers(model, retained=RETAINED, shown=FORGET, seed=3)
    assert torch.equal(answers[~FORGET.region_B1HW], FORGET.target_BCHW[~FORGET.region_B1HW]), "known pixels are put back"
    errors = ((answers - FORGET.target_BCHW).square() * FORGET.region_B1HW).sum((1, 2, 3)) / FORGET.region_B1HW.sum((1, 2, 3))
    (judged,), _, _ = decoder_errors(model, retained=RETAINED, judged=[FORGET], seed=3)
    # Answers are clamped and what is judged is not: no image gets worse.
    assert (errors.numpy() <= judged + 1e-6).all() and errors.numpy() == pytest.approx(judged, rel=0.2)
    several, _, _ = decoder_errors(model, retained=RETAINED, judged=[UNSEEN, FORGET], seed=3)
    assert several[1] == pytest.approx(judged), "whatever else is judged"


# Refusals.


def test_features_that_cannot_be_used_are_refused() -> None:
    uneven = Telling(lambda visible, target, region, draws: visible.flatten(1)[:, : 20 + len(visible)])
    with pytest.raises(ConfigError, match="not always as many"):
        features(uneven, [RETAINED, FORGET], seed=0, batch_size=30)
    broken = Telling(lambda visible, target, region, draws: visible.flatten(1) / 0)
    with pytest.raises(CheckpointError, match="not finite"):
        features(broken, [FORGET], seed=0)
    with pytest.raises(ValueError, match="on 1 images"):
        ridge_weights(torch.ones(1, 2).double(), torch.ones(1, 2).double(), torch.ones(1, 4))
