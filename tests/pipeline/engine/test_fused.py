"""Plain ascent over partitions: the weights of one process with plain tensors, at any stage, precision and number of ranks."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import group
from pipeline.engine.fused import FusedAscent, Lent
from pipeline.engine.layout import Piece, pieces_of, runs_of
from pipeline.kernels.choose import choose
from pipeline.kernels.counter import Draw, normal
from pipeline.kernels.reference import Reference
from tests.pipeline.engine.test_noisy import BATCH, batch, loss, model, take
from tests.support.distributed import run_distributed

KEY = bytes(range(8))
STEPS, RATE, CLIP, NOISE, BALL = 3, 0.5, 0.02, 2e-4, 0.02
Weights = dict[str, Tensor]


def reference(ball: float | None, sign: float) -> Weights:
    """theta + eta clip(grad L) + noise, then the nearest point of the ball, in plain tensors."""
    moved = model()
    centre = {name: parameter.detach().clone() for name, parameter in moved.named_parameters()}
    for step in range(STEPS):
        moved.zero_grad()
        (sign * loss(moved, *batch(step)) / BATCH).backward()
        vector = torch.cat([parameter.grad.flatten() for parameter in moved.parameters()]).double()
        short, start, squares = min(1.0, CLIP / float(vector.norm())), 0, 0.0
        for name, parameter in moved.named_parameters():
            noise = NOISE * normal(Draw("philox", KEY, step), start, parameter.numel()).view_as(parameter)
            parameter.data = parameter.data - RATE * short * parameter.grad + noise
            squares += float((parameter.data - centre[name]).double().square().sum())
            start += parameter.numel()
        if ball is not None and squares > ball**2:
            for name, parameter in moved.named_parameters():
                parameter.data = centre[name] + (parameter.data - centre[name]) * (ball * (1 - 1e-5) / math.sqrt(squares))
    return {name: parameter.detach().clone() for name, parameter in moved.named_parameters()}


def armed(stage: int, precision: str, ball: float | None) -> Backend:
    ranks = group()
    backend = Backend(
        model(),
        engine=EngineConfig(zero_stage=stage, precision=precision),
        optimizer=OptimizerConfig(learning_rate=RATE, steps=8, decay=False),
        micro_batch=BATCH // ranks.world_size,
        group=ranks,
        steps=lambda moving: FusedAscent(
            moving, lr=99.0, clip=CLIP, noise=NOISE, ball=ball, key=KEY, sum=ranks.sum, kernels=choose(ranks.device)
        ),
    )
    backend.arm(dict(model().named_parameters()))
    return backend


def ascended(stage: int, precision: str, ball: float | None) -> tuple[Weights, dict[str, float], int]:
    backend = armed(stage, precision, ball)
    runs = len(runs_of(pieces_of(backend.engine, backend._names, backend._steps)))
    for step in range(STEPS):
        take(backend, step, -1.0)  # ascent is descent on the negated loss
    answer = backend.weights(), backend.tally, runs
    backend.close()
    return answer


def grid(cases: list[tuple[int, str, float | None]]) -> list[Any]:
    return [ascended(*case) for case in cases]


def compare(cases: list[tuple[int, str, float | None]], answers: list[Any]) -> None:
    """What each rank found by `grid`, with the weights of one process."""
    wanted = {ball: reference(ball, -1.0) for ball in (None, BALL)}
    for found in answers:
        for (stage, _, ball), (weights, tally, runs) in zip(cases, found, strict=True):
            for name, tensor in wanted[ball].items():
                torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6, msg=f"stage {stage}: {name}")
            assert tally["steps"] == STEPS
            assert tally["step_norm"] == pytest.approx(RATE * CLIP, rel=1e-3)
            assert tally.get("ball_norm", 0.0) <= BALL and ("ball_norm" in tally) == (ball is not None)
            # One call moves a whole partition, where the partition is a stretch of the vector.
            assert runs == 1 if stage in (1, 2) else runs <= len(weights)


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2])
def test_weights_are_those_of_one_process_at_every_stage(world_size: int) -> None:
    cases = [(stage, "fp32", ball) for stage in range(4) for ball in (None, BALL)]
    compare(cases, run_distributed(grid, world_size, cases))


@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_low_precision_moves_fp32_masters_by_the_same_noise(precision: str) -> None:
    wanted = reference(None, -1.0)
    cases = [(stage, precision, None) for stage in range(4)]
    for answers in run_distributed(grid, 2, cases):
        for (stage, _, _), (weights, tally, _) in zip(cases, answers, strict=True):
            # Gradients in bf16 differ, and so does the start at stage 0; no step is longer than its bound.
            apart = math.sqrt(sum(float((weights[n] - wanted[n]).double().square().sum()) for n in wanted))
            assert tally["step_norm"] <= RATE * CLIP * (1 + 1e-4)
            assert tally["noise_low"] == pytest.approx(1.0, abs=0.1)
            assert apart < 0.3 * STEPS * RATE * CLIP + (0.1 if stage == 0 and precision == "bf16" else 0), f"stage {stage}"


def refused() -> list[str]:
    found = []
    for stage in range(4):
        for bad in (math.inf, math.nan):
            backend = armed(stage, "fp32", BALL)
            given = backend.weights()
            with contextlib.suppress(FloatingPointError):  # DeepSpeed may see it first, and leave the step out
                take(backend, 0, bad if group().rank == 0 else 1.0)
            weights = backend.weights()
            found.append(f"{all(torch.equal(weights[name], given[name]) for name in given)} {backend.tally.get('steps', 0)}")
            backend.close()
    return found


@pytest.mark.distributed
def test_what_is_not_finite_moves_nothing() -> None:
    for found in run_distributed(refused, 2):
        assert found == ["True 0"] * 8


def half_way(folder: str) -> None:
    for stage in range(4):
        backend = armed(stage, "fp32", BALL)
        for step in range(STEPS - 1):
            take(backend, step, -1.0)
        state = TrainState(step=STEPS - 1, tally=backend.tally)
        Checkpoints(folder, f"stage{stage}", config_digest="same", group=group()).save(backend, state)
        assert not any(backend._steps.state.values()), "moments that nobody needs stay in memory"
        backend.close()


def other_half(folder: str) -> list[Weights]:
    found = []
    for stage in range(4):
        backend = armed(stage, "fp32", BALL)
        state = Checkpoints(folder, f"stage{stage}", config_digest="same", group=group()).restore(backend)
        assert state is not None and state.step == STEPS - 1
        backend.recall(state.tally)
        take(backend, STEPS - 1, -1.0)
        assert not any(backend._steps.state.values()), "moments that nobody needs stay in memory"
        found.append(backend.weights())
        backend.close()
    return found


@pytest.mark.distributed
def test_interrupted_ascent_goes_on_at_another_number_of_ranks(tmp_path: Path) -> None:
    wanted = reference(BALL, -1.0)
    run_distributed(half_way, 2, str(tmp_path))
    for stage, weights in enumerate(run_distributed(other_half, 1, str(tmp_path))[0]):
        for name, tensor in wanted.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-6, msg=f"stage {stage}: {name}")


def _broken_off_in_bf16(folder: str) -> list[tuple[Weights, Weights]]:
    found = []
    for stage in (1, 2):
        whole, broken, again = (armed(stage, "bf16", BALL) for _ in range(3))
        for step in range(STEPS):
            take(whole, step, -1.0)
        for step in range(STEPS - 1):
            take(broken, step, -1.0)
        points = Checkpoints(folder, f"stage{stage}", config_digest="same", group=group())
        points.save(broken, TrainState(step=STEPS - 1, tally=broken.tally))
        state = points.restore(again)
        assert state is not None
        again.recall(state.tally)
        take(again, STEPS - 1, -1.0)
        found.append((whole.weights(), again.weights()))
        for backend in (whole, broken, again):
            backend.close()
    return found


@pytest.mark.distributed
def test_ascent_in_bf16_that_was_broken_off_while_its_ball_bound_goes_on_bit_for_bit(tmp_path: Path) -> None:
    for found in run_distributed(_broken_off_in_bf16, 2, str(tmp_path)):
        for whole, again in found:
            assert all(torch.equal(weight, again[name]) for name, weight in whole.items())


def test_a_refused_step_says_so_and_leaves_the_tally() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    steps = FusedAscent([weight], lr=1.0, clip=1.0, key=KEY, sum=lambda values: values, kernels=Reference())
    steps.step()  # before it is armed a step does nothing
    steps.arm([Piece("w", weight.detach(), weight, 0, 0, 0)], None, counts=True)
    weight.grad = torch.tensor([1.0, math.nan, 0.0, 0.0])
    with pytest.raises(FloatingPointError, match="no weight was moved"):
        steps.step()
    assert torch.equal(weight.detach(), torch.ones(4)) and steps.tally == {}
    weight.grad = torch.tensor([0.0, 3.0, 0.0, 4.0])
    steps.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0, 0.4, 1.0, 0.2]))
    weight.grad = None
    steps.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0, 0.4, 1.0, 0.2]))
    assert steps.tally["steps"] == 2


class _Counting(Reference):
    """Which passes wrote a copy."""

    def __init__(self) -> None:
        self.wrote: list[str] = []

    def move(self, weights: Tensor, gradient: Tensor | None, **options: Any) -> Tensor:
        self.wrote += ["move"] if options.get("copy") is not None else []
        return super().move(weights, gradient, **options)

    def project(self, weights: Tensor, **options: Any) -> Tensor:
        self.wrote += ["project"] if options.get("copy") is not None else []
        return super().project(weights, **options)


def test_copies_are_the_rounded_weights_after_each_step_and_are_written_once_while_the_ball_binds() -> None:
    weight, kernels = torch.nn.Parameter(torch.full((4,), 0.1)), _Counting()
    steps = FusedAscent([weight], lr=1.0, clip=9.0, ball=1.0, key=KEY, sum=lambda values: values, kernels=kernels)
    steps.arm([Piece("w", weight.detach(), weight, 0, 0, 0)], None, counts=True)
    copy, found = torch.zeros(4, dtype=torch.bfloat16), []
    for gradient, binds in ((-0.1, False), (-2.0, True), (-2.0, True), (0.3, False), (0.01, False), (-2.0, True)):
        kernels.wrote.clear()
        # Twice the gradient in bf16, of which half is meant: as two ranks have summed it.
        steps.take({weight: Lent(torch.full((4,), 2 * gradient).bfloat16(), copy)}, 0.5)
        assert torch.equal(copy, weight.detach().bfloat16())
        assert (abs(float(weight.detach().norm()) - 1) < 1e-4) == binds
        found.append(" ".join(kernels.wrote))
    assert found == ["move", "move project", "project", "project", "move", "move project"]


def test_a_factor_is_as_good_as_a_gradient_that_has_it() -> None:
    moved = []
    for factor in (1.0, 0.25):
        weight = torch.nn.Parameter(torch.zeros(4))
        steps = FusedAscent([weight], lr=0.5, clip=1.0, key=KEY, sum=lambda values: values, kernels=Reference())
        steps.arm([Piece("w", weight.detach(), weight, 0, 0, 0)], None, counts=True)
        for gradient in (torch.tensor([0.1, -0.2, 0.0, 0.3]), torch.tensor([3.0, 0.0, -4.0, 0.0])):  # short, and clipped
            steps.take({weight: Lent(gradient / factor)}, factor)
        moved.append(weight.detach())
        assert steps.tally["step_norm"] == pytest.approx(0.5)
    assert torch.equal(*moved)
