"""What a run's certificate would cost: the noise, and where there is an original already, what that does to its loss."""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline import component
from pipeline.chain import read_receipt, stage
from pipeline.models.base import ImageModel, certified_weights
from pipeline.orders import PriceAnswer, PriceOrder
from pipeline.privacy.mechanism import CertifyConfig, Mechanism, certify_config, mechanism_of
from pipeline.privacy.noise import SecretNoise, fresh_key
from pipeline.stages.certify import base_of, centre_of
from pipeline.stages.phase import Phase, choose
from pipeline.stages.runner import Job

__all__ = ["IMAGES", "run"]

IMAGES = 256
"""Unseen retained images whose loss is measured."""
DRAWS = 3
"""Independent noises; the mean of their losses is told."""


def run(order: PriceOrder) -> PriceAnswer:
    """Compute the noise, and measure what it does.

    Raises:
        ConfigError: the run asks for no certificate, or for one that cannot be.
    """
    config = certify_config(order.config.method.get("certify"))
    assert config is not None  # the plan asks for those that have one
    mechanism = mechanism_of(config)
    with torch.device("meta"):
        shape: ImageModel = component.build("model", order.config.model)
    names = certified_weights(shape, config.trains)
    dimension = sum(parameter.numel() for name, parameter in shape.named_parameters() if name in set(names))
    before = after = None
    images, note = 0, "no original is trained yet"
    if read_receipt(order.folder, "train") is not None:
        before, after, images = _losses(Phase(_job(order), "certify"), config, mechanism, names)
        note = "" if images else "the source has no unseen images of kept kinds"
    norm = mechanism.noise_norm(dimension)
    return PriceAnswer(
        epsilon=config.epsilon,
        delta=config.delta,
        dimension=dimension,
        steps=mechanism.steps,
        radius=config.radius,
        noise=mechanism.noise,
        noise_norm=norm,
        ratio=norm / config.radius,
        loss_before=before,
        loss_after=after,
        images=images,
        note=note,
    )


def _job(order: PriceOrder) -> Job:
    return Job(spec=stage("certify", order.config), config=order.config, folder=order.folder)


def _losses(
    phase: Phase, config: CertifyConfig, mechanism: Mechanism, names: list[str]
) -> tuple[float | None, float | None, int]:
    """Mean loss of the original and of what the noise would leave of it."""
    model = phase.loaded("train", "original").eval()
    unseen = phase.samples("calibration")
    classes = [label for group in phase.manifest.groups if group.kind == "class" for label in group.labels]
    rows = choose(unseen, phase.seed, IMAGES, ~np.isin(unseen.labels, classes))
    if not len(rows):
        return None, None, 0
    reader = phase.reader(unseen, model)
    before = float(phase.losses(model, reader, rows).mean())
    given = centre_of(config, phase.model(), base_of(phase, config))
    centre = {name: tensor.to(phase.group.device) for name, tensor in given.items()}
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    apart = math.sqrt(sum(float((kept[name] - centre.get(name, 0.0)).double().square().sum()) for name in names))
    shrunk = min(1.0, config.radius / apart) if apart else 1.0
    norm = mechanism.noise_norm(1)
    losses = []
    for _ in range(DRAWS):
        noise, start = SecretNoise(fresh_key()), 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in set(names):
                    continue
                anchor = centre.get(name, torch.zeros_like(parameter))
                drawn = torch.from_numpy(noise.normal(0, start, parameter.numel())).to(parameter).view_as(parameter)
                parameter.copy_(anchor + shrunk * (kept[name] - anchor) + norm * drawn)
                start += parameter.numel()
        losses.append(float(phase.losses(model, reader, rows).mean()))
    reader.close()
    return before, float(np.mean(losses)), len(rows)
