"""What a certificate costs: the noise by formula, and a loss that grows with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.acts.price import run
from pipeline.config import read_run
from pipeline.models.autoencoder import Config, build
from pipeline.orders import PriceAnswer, PriceOrder
from tests.support.distributed import run_distributed
from tests.support.runs import TINY, prepare, run_stages


def price(folder: Path, *, trained: bool, **fields: Any) -> PriceAnswer:
    method = {**TINY["method"], "retention": "plain", "certify": {"steps": 4, "batch_size": 16, **fields}}
    place = prepare(folder, method=method, reference="none")
    if trained:
        run_distributed(run_stages, 1, place, "shard", "train")
    return run(PriceOrder(config=read_run(place), folder=place))


def test_without_an_original_only_the_noise_is_told(tmp_path: Path) -> None:
    found = price(tmp_path, trained=False, noise=0.5, radius=2.0)
    parameters = sum(p.numel() for p in build(Config(image_size=8, width=8, latent=16)).parameters())
    assert found.dimension == parameters
    assert found.noise_norm == pytest.approx(0.5 * (4 * parameters) ** 0.5)
    assert found.ratio == pytest.approx(found.noise_norm / 2.0)
    assert (found.loss_before, found.loss_after, found.note) == (None, None, "no original is trained yet")


@pytest.mark.distributed
def test_more_noise_costs_more(tmp_path: Path) -> None:
    little = price(tmp_path, trained=True, noise=1e-6, radius=1e6)
    much = price(tmp_path, trained=False, noise=1.0, radius=1e6)  # the same folder
    assert little.images > 0 and little.loss_before == pytest.approx(much.loss_before)
    assert little.loss_after == pytest.approx(little.loss_before, rel=1e-3)
    assert much.loss_after is not None and little.loss_after is not None and much.loss_after > 1.2 * little.loss_after
