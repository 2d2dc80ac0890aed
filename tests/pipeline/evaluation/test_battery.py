"""Laws of the attacks on small models: a model that is the retrained one is not told apart, and the original is what it is."""

from __future__ import annotations

import pytest
import torch

from pipeline import component
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.battery import ATTACKS, Attacked, Attacks, driven
from pipeline.evaluation.relearn import Views
from pipeline.findings import Found
from pipeline.models.base import ImageModel

RESAMPLING = Resampling(seed=0, resamples=60, confidence=0.95)


def model(seed: int) -> ImageModel:
    torch.manual_seed(seed)
    made: ImageModel = component.build("model", {"component": "autoencoder", "image_size": 8, "width": 8, "latent": 16})
    return made.eval()


def views(count: int, seed: int) -> Views:
    images = torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    region = torch.zeros((count, 1, 8, 8), dtype=torch.bool)
    region[..., 2:6, 2:6] = True
    visible = images.masked_fill(region, 0.5)
    return Views(visible_BCHW=visible, target_BCHW=images, region_B1HW=region, draws_B=torch.arange(count))


def attacked(seed: int) -> Attacked:
    return Attacked(images=views(24, seed), control=views(20, seed + 1), gallery=views(20, seed + 2))


def lines(found: Found) -> dict[str, tuple[float | None, str]]:
    return {item.subject: (item.value, item.says) for item in found.findings}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_retrained_model_itself_is_never_told_apart_and_doing_nothing_changes_nothing(attack: str) -> None:
    original, retrained = model(0), model(1)
    attacks, own, kept = Attacks(views(64, 9), RESAMPLING), attacked(1), attacked(5)

    def find(unlearned: ImageModel) -> dict[str, tuple[float | None, str]]:
        models = {"original": original, "unlearned": unlearned, "retrained": retrained}
        return lines(attacks.find(attack, models, own, models, kept, group="g", label="x"))

    same = find(retrained)["unlearned"]
    assert same[0] == pytest.approx(0, abs=1e-9) and same[1] in ("not told apart", "no power")
    nothing = find(original)
    assert nothing["unlearned"][0] == nothing["original"][0]
    assert set(nothing) >= {"original", "unlearned"}


@pytest.mark.parametrize("attack", ["relearn", "second_decoder"])
def test_beside_several_retrained_models_only_what_lies_beyond_their_spread_is_told_apart(attack: str) -> None:
    retrained, others, own = model(1), [model(seed) for seed in range(2, 6)], attacked(1)
    models = {"original": model(0), "unlearned": model(6), "retrained": retrained}

    def find(*more: ImageModel) -> Found:
        attacks = Attacks(views(64, 9), RESAMPLING, more)
        return attacks.find(attack, models, own, models, attacked(5), group="g", label="x")

    (line,) = (item for item in find(*others).findings if item.subject == "unlearned")
    assert line.trainings == 5 and "beside 5 retrained models" in line.measure and line.kept_low is None
    assert line.low is not None and line.value is not None and line.high is not None
    assert line.says in ("not told apart", "no power"), "all six are random"
    assert line.low < 0 < line.high and line.high - line.value == pytest.approx(line.value - line.low)
    same = find(*[retrained] * 3)
    one = next(item for item in find().findings if item.subject == "unlearned")
    (sharp,) = (item for item in same.findings if item.subject == "unlearned")
    assert sharp.value == pytest.approx(one.value, abs=1e-6) and sharp.low == pytest.approx(sharp.high, abs=1e-9)
    assert find(others[0]) == find(), "of two trainings no spread is taken"


def test_a_model_is_driven_beyond_what_the_retrained_one_loses_and_the_original_stays() -> None:
    original, retrained, images = model(0), model(1), views(24, 1)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    far = driven({"original": original, "retrained": retrained}, images)
    given = (images.visible_BCHW, images.target_BCHW, images.region_B1HW, images.draws_B)
    with torch.no_grad():
        assert float(far(*given).mean()) > float(original(*given).mean())
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
