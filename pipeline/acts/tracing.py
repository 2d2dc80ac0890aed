"""What a computation costs, found by carrying it out with tensors that have shapes and no data.

Weights, and all that is computed with them, are fake tensors (`torch._subclasses`): nothing is computed and no memory is taken,
but every operation is dispatched as it would be, so FLOP and sizes are those of the real thing. What does not depend on weights
(images, masks, draws, levels) is real, because models look at it: how many patches stay visible is a number from a mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pipeline.kernels.attention import as_on_gpus

__all__ = ["Cost", "Sizes", "Tracer"]

_CPU_ATTENTION: dict[Any, Any] = {  # the two that FlopCounterMode does not know; it hands on shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **more: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *rest, **more: sdpa_backward_flop_count(out, q, k, v)
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Parameters of a model: all of them, those that move, and the largest one that does; and bytes of its buffers."""

    parameters: int
    trained: int
    largest: int
    buffer_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOP (two for a multiplication with its addition), and the most bytes that were alive at once beside weights and
    gradients."""

    flop: int
    bytes: int


class _Fakes(TorchDispatchMode):
    """Operations on a fake tensor are fake, all others real; counts the bytes of what they make while it lives."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake, self._seen = fake, weakref.WeakKeyDictionary[Any, int]()
        self.live = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, form = tree_flatten((args, kwargs or {}))
        if any(isinstance(item, FakeTensor) for item in flat):
            flat = [self._faked(item) for item in flat]
            args, kwargs = tree_unflatten(flat, form)
            made = func(*args, **kwargs)
        else:
            made = func(*args, **(kwargs or {}))
        for item in tree_flatten(made)[0]:
            if isinstance(item, Tensor):
                self._count(item)
        return made

    def _faked(self, item: Any) -> Any:
        real = isinstance(item, Tensor) and not isinstance(item, FakeTensor)
        return self._fake.from_tensor(item) if real else item

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size

    def leave_out(self, tensors: list[Tensor]) -> None:
        """Do not count these: they are counted elsewhere, for as long as they live."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = 0


class Tracer:
    """Traces forward and backward passes of models with fake weights.

    Args:
        precision: of the engine: `fp32`, `bf16` weights, or fp32 weights under bf16 `autocast`.
        gpu: what a GPU would compute is meant.
    """

    def __init__(self, precision: str, *, gpu: bool = False) -> None:
        self._precision, self._gpu = precision, gpu
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def model(self, build: Callable[[], nn.Module], *, cast: bool = True) -> nn.Module:
        """What `build` makes, with fake weights; in bf16 where the engine's are, and `cast` does not say otherwise."""
        with torch.device("meta"):
            model = build()
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(self._like(parameter, cast), requires_grad=parameter.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = self._like(buffer, cast)
        return model

    def _like(self, tensor: Tensor, cast: bool) -> Tensor:
        low = cast and self._precision == "bf16" and tensor.is_floating_point()
        with self._fake:
            return torch.empty(tensor.shape, dtype=torch.bfloat16 if low else tensor.dtype, device="cpu")

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model as an engine wraps it: its forward pass under autocast where the precision says so."""
        return _Autocast(model) if self._precision == "autocast" else model

    def sizes(self, model: nn.Module) -> Sizes:
        """Count parameters and buffers."""
        moving = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        return Sizes(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            trained=sum(moving),
            largest=max(moving, default=0),
            buffer_bytes=sum(math.prod(buffer.shape) * buffer.element_size() for buffer in model.buffers()),
        )

    def training(self, loss: Callable[[], Tensor], *models: nn.Module) -> Cost:
        """Forward and backward of a loss. Gradients of `models` leave the count as they come: where they lie is ZeRO's
        business."""
        with self._counting(models) as (fakes, counter), contextlib.ExitStack() as hooks:
            for parameter in (parameter for model in models for parameter in model.parameters() if parameter.requires_grad):
                handle = parameter.register_post_accumulate_grad_hook(_drop_gradient)
                hooks.callback(handle.remove)
            loss().backward()
        return Cost(flop=counter.get_total_flops(), bytes=fakes.most)

    def inference(self, answer: Callable[[], Any], *models: nn.Module) -> Cost:
        """Something that needs no gradient."""
        with self._counting(models) as (fakes, counter), torch.no_grad():
            answer()
        return Cost(flop=counter.get_total_flops(), bytes=fakes.most)

    @contextlib.contextmanager
    def _counting(self, models: tuple[nn.Module, ...]) -> Iterator[tuple[_Fakes, FlopCounterMode]]:
        fakes = _Fakes(self._fake)
        fakes.leave_out([tensor for model in models for tensor in (*model.parameters(), *model.buffers())])
        place = as_on_gpus() if self._gpu else contextlib.nullcontext()
        with place, fakes, FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
            yield fakes, counter


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(*args, **kwargs)
