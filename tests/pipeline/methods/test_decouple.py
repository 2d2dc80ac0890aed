"""The two losses against written-out formulas, and the refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.stream import Batch
from pipeline.data.tasks.center_crop import CenterCrop
from pipeline.data.tasks.center_crop import Config as TaskConfig
from pipeline.decode import decode
from pipeline.errors import ConfigError
from pipeline.methods.base import LossContext, group_means, plain_loss
from pipeline.methods.decouple import Config, RetentionConfig, build

CONTEXT = LossContext(task=CenterCrop(TaskConfig()), device=torch.device("cpu"), world_size=1, sum=lambda values: values.double())


class Scale(nn.Module):
    """One parameter; the loss of an image is w * its mean in the region."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, visible: Tensor, target: Tensor, region: Tensor, draws: Tensor, want: str) -> Tensor:
        return self.w * (target * region).flatten(1).sum(1) / region.flatten(1).sum(1)


def batch(values: list[int], groups: list[int], weights: list[float] | None = None) -> Batch:
    images = np.stack([np.full((8, 8, 1), value, np.uint8) for value in values])
    given = np.array(weights or [1.0] * len(values), np.float32)
    return Batch(images=images, groups=np.array(groups), weights=given, rows=np.arange(len(values)), draws=np.arange(len(values)))


def gradient(loss: Tensor, model: Scale) -> float:
    model.w.grad = None
    loss.backward()
    return float(model.w.grad)


def test_ascent_below_lambda_and_descent_above_it() -> None:
    model = Scale()
    forget = batch([51, 102, 204], [0, 0, 1])
    means = (0.3, 0.8)  # of groups 0 and 1
    for levels, signs in [((0.5, 0.9), (-1, -1)), ((0.2, 0.9), (1, -1)), ((0.2, 0.5), (1, 1)), ((None, 0.9), (0, -1))]:
        losses = build(Config(), levels, CONTEXT).forget_loss(model, forget)
        assert gradient(losses.total, model) == pytest.approx(signs[0] * means[0] + signs[1] * means[1], abs=1e-6)
        assert losses.samples == 3


def test_padding_weighs_nothing() -> None:
    model = Scale()
    losses = build(Config(), (0.9,), CONTEXT).forget_loss(model, batch([51, 255], [0, 0], [1.0, 0.0]))
    assert gradient(losses.total, model) == pytest.approx(-0.2, abs=1e-6)
    assert losses.measures == {"forget_loss_0": pytest.approx(0.2)}
    assert losses.samples == 1


def test_guarded_retention_is_retain_mean_plus_weighted_distances() -> None:
    model, method = Scale(), build(Config(retain=RetentionConfig(guard_weight=0.25, distillation=0)), (0.9, None), CONTEXT)
    losses = method.retain_loss(model, (batch([102, 204], [-1, -1]), batch([51], [0])))
    assert gradient(losses.total, model) == pytest.approx(0.6 - 0.25 * 0.2, abs=1e-6)
    assert losses.measures["retain_loss"] == pytest.approx(0.6)
    assert losses.samples == 3


class Squares(Scale):
    """The same, whose answers are that far apart by their squared difference."""

    gives_both = False

    def distance(self, prediction: Tensor, other: Tensor, region: Tensor) -> Tensor:
        assert not region.any(), "not what training judges"
        return (prediction - other).square()

    def judged(self, region: Tensor, draws: Tensor) -> Tensor:
        assert region.any() and len(draws) == len(region)
        return torch.zeros_like(region)


class Pairs(Squares):
    """Gives both in one pass; `passes` are counted."""

    gives_both, passes = True, 0

    def forward(self, *views: Any) -> Any:
        self.passes += 1
        found = super().forward(*views)
        return (found, found) if views[-1] == "both" else found


def frozen(scale: float) -> Squares:
    model = Squares()
    model.w.data.fill_(scale)
    return model


def shadowed(groups: set[int], shape: type[Squares] = Squares) -> LossContext:
    shadow, original = frozen(3.0), frozen(2.0)
    others = {"shadow": lambda: shadow, "teacher": lambda: original}
    return dataclasses.replace(CONTEXT, shape=shape, shadowed=frozenset(groups), **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [Squares, Pairs])
def test_a_shadowed_group_imitates_and_the_others_are_held(shape: type[Squares]) -> None:
    model, forgotten = shape(), batch([51, 102, 204], [0, 0, 1])  # errors 0.2 and 0.4 of group 0, 0.8 of group 1
    retained = batch([102, 204], [-1, -1])
    weights = RetentionConfig(guard_weight=0.25, imitation_weight=0.5, distillation=0)
    losses = build(Config(retain=weights), (0.9, 0.9), shadowed({0}, shape)).retain_loss(model, (retained, forgotten))
    towards = 2 * (1 - 3) * (0.2**2 + 0.4**2) / 2
    assert gradient(losses.total, model) == pytest.approx(0.6 - 0.25 * 0.8 + 0.5 * towards, abs=1e-6)
    assert losses.measures["imitation"] == pytest.approx(4 * 0.1) and losses.measures.keys() >= {"forget_loss_1"}
    assert "forget_loss_0" not in losses.measures
    passes = 1 if isinstance(model, Pairs) else 2  # in two, a gradient of each image is taken twice
    assert losses.samples == passes * (2 + 3)
    assert getattr(model, "passes", 2) == passes


@pytest.mark.parametrize("shape", [Squares, Pairs])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_retained_images_teach_the_originals_answers(shape: type[Squares], alpha: float) -> None:
    model, context = shape(), shadowed(set(), shape)
    both = (batch([102, 204, 255], [-1, -1, -1], [1.0, 1.0, 0.0]), batch([51], [0]))  # errors 0.4 and 0.8; one is padding
    weights = RetentionConfig(guard_weight=0.25, distillation=alpha)
    losses = build(Config(retain=weights), (0.9,), context).retain_loss(model, both)
    towards = 2 * (1 - 2) * (0.4**2 + 0.8**2) / 2
    assert gradient(losses.total, model) == pytest.approx((1 - alpha) * 0.6 + alpha * towards - 0.25 * 0.2, abs=1e-6)
    assert losses.measures["retain_loss"] == pytest.approx(0.6) and losses.measures["distillation"] == pytest.approx(0.4)
    assert losses.samples == (1 if isinstance(model, Pairs) else 2) * (2 + 1)
    assert context.teacher().w.grad is None and context.teacher().w.item() == 2.0


def test_the_original_teaches_nothing_where_it_is_not_asked_for() -> None:
    """`retention: plain` can earn a certificate, which an original that saw the forget images would spoil."""
    plain = build(Config(retention="plain", retain=RetentionConfig(distillation=1.0)), (0.9,), CONTEXT).retention()
    assert float(plain.loss(Scale(), batch([102, 204], [-1, -1])).total.detach()) == pytest.approx(0.6)


@pytest.mark.parametrize("shape", [Squares, Pairs])
def test_without_a_held_group_forget_images_are_read_for_imitation_alone(shape: type[Squares]) -> None:
    model, both = shape(), (batch([102], [-1]), batch([51, 255], [0, 0], [1.0, 0.0]))
    context = shadowed({0}, shape)
    weights = RetentionConfig(imitation_weight=1.0, distillation=0)
    losses = build(Config(retain=weights), (0.9, None), context).retain_loss(model, both)
    assert gradient(losses.total, model) == pytest.approx(0.4 + 2 * (1 - 3) * 0.2**2, abs=1e-6)
    assert losses.samples == (2 if isinstance(model, Pairs) else 4), "padding is no image"
    level = build(Config(retention="level"), (0.9, None), shadowed({0})).retain_loss(model, both)
    assert "imitation" not in level.measures and "forget_loss_0" in level.measures


def test_plain_retention_and_a_group_free_batch_read_no_forget_image() -> None:
    assert build(Config(retention="plain"), (0.9,), CONTEXT).retention().reads == ("retain",)
    assert build(Config(), (None,), CONTEXT).retention().reads == ("retain",)
    assert build(Config(), (0.9,), CONTEXT).retention().reads == ("retain", "forget")
    losses = plain_loss(CONTEXT)(Scale(), batch([102, 204], [-1, -1]))
    assert float(losses.total.detach()) == pytest.approx(0.6)


def test_what_distils_is_shorter_and_a_given_length_stands() -> None:
    whole, half = RetentionConfig(), RetentionConfig(distillation=0.5)
    assert build(Config(retain=whole), (0.9,), CONTEXT).retention().share == 0.042
    for config, levels in [(Config(retain=half), (0.9,)), (Config(retention="plain"), (0.9,)), (Config(), (None,))]:
        assert build(config, levels, CONTEXT).retention().share == 0.075
    assert build(Config(retain=RetentionConfig(share=0.3)), (0.9,), CONTEXT).retention().share == 0.3
    assert build(Config(retain=RetentionConfig(momentum=0.5)), (0.9,), CONTEXT).retention().momentum == 0.5


def test_two_ranks_share_the_gradient_of_one() -> None:
    """Each rank's share is scaled so that DeepSpeed's mean over ranks is the global gradient; the sign is the global one."""
    model = Scale()
    parts = [batch([51], [0]), batch([204], [0])]
    sums = [torch.tensor([float(np.float32(value) / 255), 1.0]).double() for value in (51, 204)]
    shares = []
    for part in parts:
        context = LossContext(task=CONTEXT.task, device=CONTEXT.device, world_size=2, sum=lambda values: sums[0] + sums[1])
        shares.append(gradient(build(Config(), (0.6,), context).forget_loss(model, part).total, model))
    whole = gradient(build(Config(), (0.6,), CONTEXT).forget_loss(model, batch([51, 204], [0, 0])).total, model)
    assert sum(shares) / 2 == pytest.approx(whole, abs=1e-6)


def test_group_means_of_an_absent_group_are_zero_not_nan() -> None:
    _, means, counts = group_means(torch.tensor([1.0, 3.0]), batch([0, 0], [1, 1]), 3, CONTEXT)
    assert means.tolist() == [0.0, 2.0, 0.0]
    assert counts.tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"forget": {"passes": 0}}, "forget.passes"),
        ({"forget": {"runaway": 1.0}}, "forget.runaway"),
        ({"retain": {"guard_weight": -1.0}}, "retain.guard_weight"),
        ({"retain": {"imitation_weight": -1.0}}, "retain.imitation_weight"),
        ({"retain": {"distillation": 1.5}}, "retain.distillation"),
        ({"retain": {"momentum": 1.0}}, "retain.momentum"),
        ({"level": -0.1}, "level"),
        ({"level": {"class": 0}}, "level"),
        ({"level": {"person": 1.0}}, "level"),
        ({"retention": "none"}, "retention"),
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError, match=f"method: .*{path}"):
        decode(Config, wrong, where="method")


@pytest.mark.parametrize("field", [{"ball": 1.0}, {"step_noise": 0.1}])
def test_what_only_plain_steps_have_is_refused_of_adamw(field: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"forget.*{next(iter(field))}"):
        decode(Config, {"forget": field}, where="method")
    plan = build(decode(Config, {"forget": {"optimizer": "ascent", **field}}, where="method"), (0.5,), CONTEXT).forgetting()
    assert plan.optimizer == "ascent" and (plan.ball, plan.step_noise) == (field.get("ball"), field.get("step_noise", 0.0))
