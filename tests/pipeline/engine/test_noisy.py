"""Noisy steps over partitions: lengths, noise and weights as one process computes them with plain tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import group
from pipeline.engine.noisy import NoisySteps
from pipeline.kernels.choose import choose
from pipeline.models.autoencoder import Config, build
from pipeline.privacy.certificate import noise_bounds
from pipeline.privacy.mechanism import Mechanism
from pipeline.privacy.noise import SecretNoise
from tests.support.distributed import run_distributed

KEY = bytes(range(32))
BATCH = 12
RULE = Mechanism(kind="noisy_retain", radius=2.0, step_norm=0.05, rho=0.9, noise=0.003, steps=3, learning_rate=2.0, ball=None)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(Config(image_size=8, width=16, latent=16))


def batch(step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    images = torch.rand(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(step))[rank * BATCH // ranks :][: BATCH // ranks]
    region = torch.zeros(len(images), 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:6, 2:6] = True
    return images, region


def loss(moved: nn.Module, images: Tensor, region: Tensor) -> Tensor:
    found: Tensor = moved(images.masked_fill(region, 0.5), images, region, torch.zeros(len(images), dtype=torch.int64))
    return found.sum()


def noise_of(step: int, rule: Mechanism, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The noise of a step by parameter, from the place of each weight in the vector alone."""
    source, start, found = SecretNoise(KEY), 0, {}
    for name, shape in shapes.items():
        found[name] = rule.noise * torch.from_numpy(source.normal(step, start, shape.numel())).float().view(shape)
        start += shape.numel()
    return found


def reference(rule: Mechanism, steps: int) -> dict[str, Tensor]:
    moved, centre = model(), {n: p.detach().clone() for n, p in model(seed=1).named_parameters()}
    shapes = {n: p.shape for n, p in moved.named_parameters()}

    def draw_in(radius: float) -> None:
        apart = math.sqrt(sum(float((p.detach() - centre[n]).double().square().sum()) for n, p in moved.named_parameters()))
        if apart > radius:
            for n, p in moved.named_parameters():
                p.data = centre[n] + (p.data - centre[n]) * (radius * (1 - 1e-5) / apart)

    for step in range(steps):
        # The gradient is taken before the start is drawn in, as DeepSpeed's backward pass is.
        moved.zero_grad()
        (loss(moved, *batch(step)) / BATCH).backward()
        if not step:
            draw_in(rule.radius)
        length = rule.learning_rate * math.sqrt(sum(float(p.grad.double().square().sum()) for p in moved.parameters()))
        made = noise_of(step, rule, shapes)
        for n, p in moved.named_parameters():
            wanted = rule.learning_rate * p.grad * min(1.0, (1 - 1e-5) * rule.step_norm / length)
            p.data = centre[n] + rule.rho * (p.data - centre[n]) - wanted + made[n]
        if rule.ball is not None:
            draw_in(rule.ball)
    return {n: p.detach().clone() for n, p in moved.named_parameters()}


def armed(stage: int, precision: str = "fp32", rule: Mechanism = RULE) -> Backend:
    ranks, source = group(), SecretNoise(KEY)
    backend = Backend(
        model(),
        engine=EngineConfig(zero_stage=stage, precision=precision),
        optimizer=OptimizerConfig(learning_rate=1.0, steps=8, decay=False),
        micro_batch=BATCH // ranks.world_size,
        group=ranks,
        steps=lambda moving: NoisySteps(moving, mechanism=rule, noise=source, sum=ranks.sum, kernels=choose(ranks.device)),
    )
    backend.arm(dict(model(seed=1).named_parameters()))
    return backend


def take(backend: Backend, step: int, scale: float = 1.0) -> None:
    """A step whose loss this rank scales."""
    ranks = group()
    images, region = (part.to(ranks.device) for part in batch(step, ranks.rank, ranks.world_size))
    backend.backward(loss(backend.model, images, region) * (scale * ranks.world_size / BATCH))
    backend.step(step)


def noisy(stage: int, precision: str, rule: Mechanism = RULE) -> tuple[dict[str, Tensor], dict[str, float]]:
    backend = armed(stage, precision, rule)
    for step in range(3):
        take(backend, step)
    answer = backend.weights(), backend.tally
    backend.close()
    return answer


def grid(precision: str, rule: Mechanism = RULE) -> dict[int, tuple[dict[str, Tensor], dict[str, float]]]:
    return {stage: noisy(stage, precision, rule) for stage in range(4)}


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_weights_lengths_and_noise_are_those_of_one_process(world_size: int) -> None:
    wanted = reference(RULE, 3)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    dimension = sum(shape.numel() for shape in shapes.values())
    made = [noise_of(step, RULE, shapes) for step in range(3)]
    squares = [sum(float(part.double().square().sum()) for part in one.values()) / dimension / RULE.noise**2 for one in made]
    for answers in run_distributed(grid, world_size, "fp32"):
        for stage, (weights, tally) in answers.items():
            for name, tensor in wanted.items():
                torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6, msg=f"stage {stage}: {name}")
            assert tally["steps"] == 3 and tally["dimension"] == dimension
            assert tally["start_norm"] <= RULE.radius and tally["start_norm"] == pytest.approx(RULE.radius, rel=1e-4)
            assert tally["step_norm"] <= RULE.step_norm and tally["step_norm"] == pytest.approx(RULE.step_norm, rel=1e-3)
            assert tally["noise_low"] == pytest.approx(min(squares), rel=1e-4)
            assert tally["noise_high"] == pytest.approx(max(squares), rel=1e-4)
            low, high = noise_bounds(dimension)
            assert low < tally["noise_low"] <= tally["noise_high"] < high


@pytest.mark.distributed
def test_bf16_weights_carry_the_same_noise_on_fp32_masters() -> None:
    """Gradients in bf16 differ; so the steps do, by no more than their cap. The noise does not."""
    wanted = reference(RULE, 3)
    for answers in run_distributed(grid, 2, "bf16"):
        for stage, (weights, tally) in answers.items():
            apart = math.sqrt(sum(float((weights[n] - wanted[n]).double().square().sum()) for n in wanted))
            total = math.sqrt(3 * tally["dimension"]) * RULE.noise
            assert apart < 0.6 * RULE.step_norm < 0.1 * total, f"stage {stage}"
            assert tally["start_norm"] <= RULE.radius and tally["step_norm"] <= RULE.step_norm
            low, high = noise_bounds(int(tally["dimension"]))
            assert low < tally["noise_low"] <= tally["noise_high"] < high


@pytest.mark.distributed
def test_projected_steps_end_in_the_ball() -> None:
    rule = Mechanism(kind="projected", radius=2.0, step_norm=0.05, rho=1.0, noise=0.02, steps=3, learning_rate=0.5, ball=0.5)
    wanted = reference(rule, 3)
    for answers in run_distributed(grid, 2, "fp32", rule):
        for stage, (weights, tally) in answers.items():
            assert tally["ball_norm"] <= 0.5
            for name, tensor in wanted.items():
                torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6, msg=f"stage {stage}: {name}")


def refused(stage: int, bad: float) -> str:
    backend = armed(stage)
    given = backend.weights()
    # On one rank only, as it happens. Where DeepSpeed finds it first, it leaves the step out instead of us.
    with contextlib.suppress(FloatingPointError):
        take(backend, 0, bad if group().rank == 0 else 1.0)
    weights, steps = backend.weights(), backend.tally.get("steps", 0.0)
    backend.close()
    return f"{all(torch.equal(weights[name], given[name]) for name in given)} {steps}"


def all_refused() -> list[str]:
    return [refused(stage, bad) for stage in range(4) for bad in (math.inf, math.nan)]


@pytest.mark.distributed
def test_what_is_not_finite_moves_nothing_and_turns_no_sign() -> None:
    """A step that is not counted withholds the certificate."""
    for found in run_distributed(all_refused, 2):
        assert found == ["True 0.0"] * 8


def half_way(folder: str) -> None:
    for stage in range(4):
        backend = armed(stage)
        for step in range(2):
            take(backend, step)
        state = TrainState(step=2, tally=backend.tally)
        Checkpoints(folder, f"stage{stage}", config_digest="same", group=group()).save(backend, state)
        backend.close()


def other_half(folder: str) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    found = []
    for stage in range(4):
        backend = armed(stage)
        state = Checkpoints(folder, f"stage{stage}", config_digest="same", group=group()).restore(backend)
        assert state is not None and state.step == 2
        backend.recall(state.tally)
        take(backend, 2)
        found.append((backend.weights(), backend.tally))
        backend.close()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_interrupted_steps_go_on_at_any_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    wanted = reference(RULE, 3)
    run_distributed(half_way, before, str(tmp_path))
    for stage, (weights, tally) in enumerate(run_distributed(other_half, after, str(tmp_path))[0]):
        assert tally["steps"] == 3 and 0 < tally["start_norm"] <= RULE.radius
        for name, tensor in wanted.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6, msg=f"stage {stage}: {name}")
