"""Laws of the score first (zero, sign, mirror), then the attack itself: its order, its copies, its refusals."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from pipeline.decode import canonical
from pipeline.errors import CheckpointError
from pipeline.evaluation.base import Interval, Resampling
from pipeline.evaluation.relearn import Attack, Relearning, Views, relearn, relearning_losses
from pipeline.models.autoencoder import Autoencoder, Config, build

HOW = Resampling(seed=3, resamples=200, confidence=0.95)
ATTACK = Attack(learning_rate=1e-3, steps=10, every=4, batch_size=4)
SIZE = 8


def views(num: int, seed: int) -> Views:
    """Smooth images with their middle hidden."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 1, 3, 3, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=True)
    region = torch.zeros(num, 1, SIZE, SIZE, dtype=torch.bool)
    region[:, :, 2:6, 2:6] = True
    draws = torch.arange(num) + 1000 * seed
    return Views(visible_BCHW=images.masked_fill(region, 0.5), target_BCHW=images, region_B1HW=region, draws_B=draws)


def trained(start: Autoencoder, on: Views, *, steps: int, sign: float = 1.0) -> Autoencoder:
    model = copy.deepcopy(start)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        adam.zero_grad()
        (sign * model(on.visible_BCHW, on.target_BCHW, on.region_B1HW, on.draws_B).mean()).backward()
        adam.step()
    return model.eval()


FORGET, RETAIN = views(24, 1), views(24, 2)
TAUGHT, JUDGED = FORGET.part(slice(8)), FORGET.part(slice(8, None))


@pytest.fixture(scope="module")
def models() -> dict[str, Autoencoder]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = build(Config(image_size=SIZE, channels=1, width=8, latent=32))
    retrained = trained(fresh, RETAIN, steps=60)
    both = Views(
        **{
            name: torch.cat([getattr(FORGET, name), getattr(RETAIN, name)])
            for name in ("visible_BCHW", "target_BCHW", "region_B1HW", "draws_B")
        }
    )
    return {
        "retrained": retrained,
        "original": trained(fresh, both, steps=250),
        "pushed": trained(retrained, FORGET, steps=6, sign=-1.0),
    }


def attacked(models: dict[str, Autoencoder], unlearned: str, retrained: str = "retrained", **more: Autoencoder) -> Relearning:
    return relearn(
        models[unlearned], models[retrained], taught=TAUGHT, judged=JUDGED, attack=ATTACK, resampling=HOW, label="x", **more
    )


# Laws.


def test_a_model_equal_to_the_retrained_one_scores_exactly_zero(models: dict[str, Autoencoder]) -> None:
    models = {**models, "equal": copy.deepcopy(models["retrained"])}
    found = attacked(models, "equal")
    zero = Interval(value=0.0, low=0.0, high=0.0)
    assert found.score == zero and found.start == zero
    assert found.curves["unlearned"] == found.curves["retrained"]


def test_a_model_that_knows_the_images_is_below_zero_and_one_pushed_away_above(models: dict[str, Autoencoder]) -> None:
    knows, pushed = (attacked(models, name) for name in ("original", "pushed"))
    assert knows.score.high < 0 < pushed.score.low


def test_exchanging_the_models_mirrors_the_score(models: dict[str, Autoencoder]) -> None:
    there, back = attacked(models, "pushed"), attacked(models, "retrained", "pushed")
    assert back.score.value == pytest.approx(-there.score.value)
    assert (back.score.low, back.score.high) == pytest.approx((-there.score.high, -there.score.low), abs=1e-3)


def test_score_is_the_ratio_of_the_areas_under_the_curves(models: dict[str, Autoencoder]) -> None:
    found = attacked(models, "pushed")
    assert found.steps == (0, 4, 8, 10)
    areas = {name: np.trapezoid(curve, found.steps) for name, curve in found.curves.items()}
    assert found.score.value == pytest.approx(math.log(areas["unlearned"] / areas["retrained"]))
    assert found.start.value == pytest.approx(math.log(found.curves["unlearned"][0] / found.curves["retrained"][0]))
    assert (found.images, found.samples, found.confidence) == (8, 16, 0.95)
    assert canonical(found)


def test_losses_of_images_make_the_score_and_its_null_is_where_no_model_is_better(models: dict[str, Autoencoder]) -> None:
    found, equal = attacked(models, "pushed"), attacked(models, "retrained")
    means = {name: sum(losses) / len(losses) for name, losses in found.losses.items()}
    assert found.score.value == pytest.approx(math.log(means["unlearned"] / means["retrained"]))
    assert all(len(losses) == found.samples for losses in found.losses.values())
    assert min(found.null) < 0 < max(found.null) and max(map(abs, found.null)) <= found.score.value
    assert set(equal.null) == {0.0}


def test_the_original_as_a_control_has_the_score_it_has_as_a_subject(models: dict[str, Autoencoder]) -> None:
    found = attacked(models, "pushed", original=models["original"])
    assert found.control == attacked(models, "original").score
    assert found.score == attacked(models, "pushed").score
    assert set(found.curves) == {"unlearned", "retrained", "original"}


def test_models_and_the_global_generator_are_left_as_they_were(models: dict[str, Autoencoder]) -> None:
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    models["pushed"].train()
    models["pushed"].squeeze.bias.grad = torch.ones_like(models["pushed"].squeeze.bias)
    state = torch.random.get_rng_state()
    with torch.no_grad():  # as a caller that only measures would have it
        attacked(models, "pushed", original=models["original"])
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items()), name
    assert models["pushed"].training
    assert torch.equal(models["pushed"].squeeze.bias.grad, torch.ones_like(models["pushed"].squeeze.bias))
    models["pushed"].eval().zero_grad()


# The attack.


def test_losses_before_the_first_step_are_the_models_own_and_fall_when_taught(models: dict[str, Autoencoder]) -> None:
    model = models["retrained"]
    found = relearning_losses(model, JUDGED, JUDGED, Attack(learning_rate=1e-3, steps=40, every=40), seed=0)
    with torch.no_grad():
        own = model(JUDGED.visible_BCHW, JUDGED.target_BCHW, JUDGED.region_B1HW, JUDGED.draws_B)
    assert found.dtype == np.float64 and found.shape == (2, 16)
    np.testing.assert_allclose(found[0], own.double().numpy(), rtol=1e-6)
    assert found[1].mean() < 0.8 * found[0].mean()


def test_same_seed_same_curve_and_other_seed_other_order(models: dict[str, Autoencoder]) -> None:
    one, again, other = (relearning_losses(models["retrained"], TAUGHT, JUDGED, ATTACK, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert np.array_equal(one[0], other[0]) and not np.array_equal(one[1:], other[1:])


def test_judged_images_do_not_influence_each_other_or_the_attack(models: dict[str, Autoencoder]) -> None:
    whole = relearning_losses(models["retrained"], TAUGHT, JUDGED, ATTACK, 0)
    part = relearning_losses(models["retrained"], TAUGHT, JUDGED.part(slice(4, 8)), ATTACK, 0)
    np.testing.assert_allclose(part, whole[:, 4:8], rtol=1e-5)


class Counting(Autoencoder):
    """Notes which draws it is trained and probed with, and adds a loss that depends on the draw."""

    probe_draws = 3
    seen: list[tuple[bool, list[int]]]

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
        Counting.seen.append((torch.is_grad_enabled(), draws_B.tolist()))
        return super().forward(visible_BCHW, target_BCHW, region_B1HW, draws_B, want)


def test_every_image_is_taught_once_a_pass_with_new_draws_and_probed_with_the_same(models: dict[str, Autoencoder]) -> None:
    Counting.seen = []
    noisy = Counting(Config(image_size=SIZE, channels=1, width=8, latent=32))
    relearning_losses(noisy, TAUGHT, JUDGED, Attack(steps=4, every=2, batch_size=4), seed=0)
    taught = [draws for graded, draws in Counting.seen if graded]
    probed = [draws for graded, draws in Counting.seen if not graded]
    assert len(taught) == 4 and len({draw for draws in taught for draw in draws}) == 16
    assert len(probed) == 3 * 3 * 4 and probed[:12] == probed[12:24] == probed[24:]
    assert probed[0] == JUDGED.draws_B[:4].tolist() and probed[1] != probed[0]


def test_images_are_not_probed_with_draws_that_they_were_taught_with() -> None:
    Counting.seen = []
    noisy = Counting(Config(image_size=SIZE, channels=1, width=8, latent=32))
    relearning_losses(noisy, TAUGHT, TAUGHT, Attack(steps=4, every=4), seed=0)
    taught, probed = ({draw for graded, draws in Counting.seen if graded == which for draw in draws} for which in (True, False))
    assert len(taught) == 4 * 8 and len(probed) == 3 * 8 and not taught & probed


def test_a_model_left_in_training_mode_is_attacked_without_dropout() -> None:
    model = build(Config(image_size=SIZE, channels=1, width=8, latent=32))
    model.down.append(torch.nn.Dropout(0.5))
    one, other = (relearning_losses(model.train(mode), TAUGHT, JUDGED, ATTACK, 0) for mode in (True, False))
    assert np.array_equal(one, other)


def test_batches_are_passes_over_all_taught_images() -> None:
    marks: list[float] = []

    class Marking(Autoencoder):
        def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):
            if torch.is_grad_enabled():
                marks.extend(target_BCHW[:, 0, 0, 0].tolist())
            return super().forward(visible_BCHW, target_BCHW, region_B1HW, draws_B, want)

    model = Marking(Config(image_size=SIZE, channels=1, width=8, latent=32))
    relearning_losses(model, TAUGHT, JUDGED, Attack(steps=8, every=8, batch_size=3), seed=0)
    corners = sorted(TAUGHT.target_BCHW[:, 0, 0, 0].tolist())
    assert len(marks) == 24
    assert all(sorted(marks[start : start + 8]) == corners for start in (0, 8, 16))
    assert marks[:8] != marks[8:16]


# Refusals.


def test_wrong_use_is_refused(models: dict[str, Autoencoder]) -> None:
    frozen = copy.deepcopy(models["retrained"]).requires_grad_(False)
    for wrong in (Attack(steps=0), Attack(every=0), Attack(batch_size=0), Attack(learning_rate=0.0)):
        with pytest.raises(ValueError, match="out of range"):
            relearning_losses(models["retrained"], TAUGHT, JUDGED, wrong, 0)
    with pytest.raises(ValueError, match="without a tensor"):
        relearning_losses(frozen, TAUGHT, JUDGED, ATTACK, 0)
    with pytest.raises(ValueError, match="same tensors"):
        attacked({**models, "frozen": frozen}, "frozen")
    with pytest.raises(ValueError, match="views of"):
        TAUGHT.part(slice(0, 0))
    with pytest.raises(ValueError, match="pixel to judge"):
        Views(**{**{name: getattr(TAUGHT, name) for name in Views.__annotations__}, "region_B1HW": TAUGHT.region_B1HW & False})


def test_an_attack_that_diverges_is_named(models: dict[str, Autoencoder]) -> None:
    broken = copy.deepcopy(models["retrained"])
    with torch.no_grad():
        broken.squeeze.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        relearning_losses(broken, TAUGHT, JUDGED, ATTACK, 0)
