"""The fused masked patch loss is MAE's formula, forward and backward, in every implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.kernels.build import BuildError, built
from pipeline.kernels.cpu import Cpu
from pipeline.kernels.patch_loss import patch_loss
from pipeline.kernels.reference import Kernels, Reference


def compiled() -> Kernels:
    try:
        return Cpu(built())
    except BuildError as fault:
        pytest.skip(str(fault))


def interpreted() -> Kernels:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here")
    from pipeline.kernels.triton_update import Triton

    return Triton()


@pytest.fixture(params=[Reference, compiled, interpreted])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    make: Callable[[], Kernels] = request.param
    return make()


def given(width: int, low: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction, target, hidden, weight."""
    generator = torch.Generator().manual_seed(width)
    prediction, target = (torch.randn(3, 11, width, generator=generator) for _ in range(2))
    hidden = torch.rand(3, 11, generator=generator) < 0.7
    return prediction.bfloat16() if low else prediction, 0.2 * target + 0.5, hidden, torch.rand(width, generator=generator)


def formula(prediction: Tensor, target: Tensor, hidden: Tensor, weight: Tensor | None, normal: bool) -> Tensor:
    """As the released code of MAE has it, in fp64, for each sample."""
    target = target.double()
    if normal:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1.0e-6) ** 0.5
    squares = (prediction.double() - target) ** 2 * (1.0 if weight is None else weight.double())
    return (squares.mean(-1) * hidden).sum(1) / hidden.sum(1)


@pytest.mark.parametrize("width", [2, 12, 75, 768])
@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_the_formula(kernels: Kernels, width: int, normal: bool, weighted: bool) -> None:
    prediction, target, hidden, weight = given(width)
    chosen = weight if weighted else None
    slope = torch.tensor([1.0, -0.5, 3.0])
    wanted_at, found_at = (prediction.clone().requires_grad_() for _ in range(2))
    wanted = formula(wanted_at, target, hidden, chosen, normal)
    found = patch_loss(found_at, target, hidden, kernels=kernels, weight=chosen, normal=normal)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-6)
    wanted.backward(slope.double())
    found.backward(slope)
    assert wanted_at.grad is not None and found_at.grad is not None
    torch.testing.assert_close(found_at.grad, wanted_at.grad.float(), rtol=1e-4, atol=1e-6)
    assert not found_at.grad[~hidden].any()


def test_bf16_is_widened_and_its_gradient_rounded_once(kernels: Kernels) -> None:
    prediction, target, hidden, _ = given(48, low=True)
    at, exact = prediction.clone().requires_grad_(), prediction.float().requires_grad_()
    found = patch_loss(at, target, hidden, kernels=kernels)
    wanted = formula(exact, target, hidden, None, False)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    found.sum().backward()
    wanted.sum().backward()
    assert at.grad is not None and exact.grad is not None and at.grad.dtype == torch.bfloat16
    torch.testing.assert_close(at.grad.float(), exact.grad.float(), rtol=2.0**-8, atol=1e-7)


def test_a_compiler_sees_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    prediction, target, hidden, weight = given(12)
    found = patch_loss(prediction.requires_grad_(), target, hidden, kernels=Reference(), weight=weight, normal=True)
    torch.testing.assert_close(found.double(), formula(prediction, target, hidden, weight, True), rtol=1e-5, atol=0)
    assert "PatchLoss" not in str(found.grad_fn)


def test_tensors_without_memory_have_a_loss_without_memory() -> None:
    prediction, target, hidden, _ = given(12)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = patch_loss(mode.from_tensor(prediction), mode.from_tensor(target), mode.from_tensor(hidden))
    assert found.shape == (3,) and patch_loss(prediction.to("meta"), target.to("meta"), hidden.to("meta")).is_meta


def test_nothing_hidden_has_no_loss_and_no_patch_moves(kernels: Kernels) -> None:
    prediction, target, hidden, _ = given(12)
    options: Any = {"kernels": kernels}
    assert torch.isnan(patch_loss(prediction, target, torch.zeros_like(hidden), **options)).all()
    assert patch_loss(prediction[:0], target[:0], hidden[:0], **options).shape == (0,)
