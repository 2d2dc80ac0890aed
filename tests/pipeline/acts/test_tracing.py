"""Tracing without data: FLOP and bytes of small networks by hand, and the same as real tensors give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.acts.tracing import Tracer


class TwoLayers(nn.Module):
    """y = w2(relu(w1 x)), with or without recomputation."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.recompute = nn.Linear(8, 32, bias=False), nn.Linear(32, 4, bias=False), recompute

    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.inner, x, use_reentrant=False) if self.recompute else self.inner(x)
        answer: Tensor = self.second(hidden)
        return answer


def flop_of_training(recompute: bool) -> int:
    tracer = Tracer("fp32")
    model = tracer.model(lambda: TwoLayers(recompute))
    return tracer.training(lambda: model(torch.ones(16, 8)).sum(), model).flop


def test_flop_by_hand() -> None:
    # Forward 2 * 16 * (8*32 + 32*4); backward twice the second layer, and of the first only its weights: the input has none.
    first, second = 2 * 16 * 8 * 32, 2 * 16 * 32 * 4
    assert flop_of_training(recompute=False) == 2 * first + 3 * second
    assert flop_of_training(recompute=True) == 3 * first + 3 * second


def test_bytes_are_what_lives_at_once() -> None:
    tracer = Tracer("fp32")
    model = tracer.model(TwoLayers)
    tracer_bytes = [tracer.training(lambda n=n: model(torch.ones(n, 8)).sum(), model).bytes for n in (256, 512)]  # type: ignore[misc]
    each = (tracer_bytes[1] - tracer_bytes[0]) / 256
    # At least the input, both hidden activations or their gradient, and the answer; at most each of them twice.
    assert 4 * (8 + 32 + 32 + 4) <= each <= 2 * 4 * (8 + 32 + 32 + 4)


def test_nothing_is_allocated_and_sizes_are_right() -> None:
    tracer = Tracer("bf16")
    model = tracer.model(lambda: nn.Linear(100_000, 100_000, bias=False))  # 20 GB in bf16
    sizes = tracer.sizes(model)
    assert (sizes.parameters, sizes.trained, sizes.largest) == (10**10, 10**10, 10**10)
    assert next(model.parameters()).dtype == torch.bfloat16
    model.requires_grad_(False)
    assert tracer.sizes(model).trained == 0
    cost = tracer.inference(lambda: model(torch.ones(1, 100_000, dtype=torch.bfloat16)), model)
    assert cost.flop == 2 * 10**10
    assert cost.bytes < 10**7


def test_autocast_casts_weights_and_counts_them() -> None:
    tracer = Tracer("autocast")
    plain = tracer.model(TwoLayers)
    model = tracer.wrapped(plain)
    assert next(plain.parameters()).dtype == torch.float32
    cost = tracer.inference(lambda: model(torch.ones(1, 8)), plain)
    assert cost.bytes >= 2 * (8 * 32 + 32 * 4)
    assert Tracer("fp32").wrapped(plain) is plain


def test_what_does_not_depend_on_weights_is_real() -> None:
    tracer = Tracer("fp32")
    model = tracer.model(TwoLayers)

    def loss() -> Tensor:
        kept = int((torch.arange(16) % 2).sum())  # as many as a mask says
        return model(torch.ones(16, 8)[:kept]).sum()

    assert tracer.training(loss, model).flop == flop_of_training(recompute=False) / 2
    with pytest.raises(Exception, match=r"_local_scalar_dense|data-dependent|item"):
        tracer.inference(lambda: float(model(torch.ones(1, 8)).sum()), model)
