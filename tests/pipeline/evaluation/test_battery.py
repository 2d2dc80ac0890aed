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


def test_a_model_is_driven_beyond_what_the_retrained_one_loses_and_the_original_stays() -> None:
    original, retrained, images = model(0), model(1), views(24, 1)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    far = driven({"original": original, "retrained": retrained}, images)
    given = (images.visible_BCHW, images.target_BCHW, images.region_B1HW, images.draws_B)
    with torch.no_grad():
        assert float(far(*given).mean()) > float(original(*given).mean())
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())
