"""A model whose every answer is arithmetic, so that a method's gradient can be written out beside it.

Images are 8 x 8 with a hidden centre of a quarter of the area, shown black; `m` is the mean of what is shown: 0.75 * the
image's grey level. With encoder weights (a0, a1) and decoder weight b:

    features = (a0 * m, a1 * m)     prediction = b * (a0 + a1) * m everywhere     loss = mean over the hidden square of
    (prediction - image)^2          distance = mean (prediction - other)^2        a random prediction = (draw % 7) / 7
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.stream import Batch
from pipeline.data.tasks.center_crop import CenterCrop
from pipeline.data.tasks.center_crop import Config as TaskConfig
from pipeline.methods.base import LossContext, Losses
from pipeline.models.base import ImageModel, paste

WEIGHTS = (0.9, -0.2, 1.3)
"""a0, a1, b of the model that is trained."""
ORIGINAL = (0.8, 0.3, 0.9)
"""Those of its teacher, the original."""
SHOWN = 0.75
TASK = CenterCrop(TaskConfig(hidden_share=0.25, fill=0.0))
ALONE: Callable[[Tensor], Tensor] = lambda values: values.detach().double()  # noqa: E731


class Weights(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values))


class Tiny(ImageModel):
    image_size, channels = 8, 1

    def __init__(self, a0: float, a1: float, b: float) -> None:
        super().__init__()
        self.enc, self.dec = Weights(a0, a1), Weights(b)

    def forward(self, visible_BCHW, target_BCHW, region_B1HW, draws_B, want="loss"):  # type: ignore[no-untyped-def]
        features = visible_BCHW.flatten(1).mean(1)[:, None] * self.enc.weight
        if want == "features":
            return features
        answer = (self.dec.weight * features.sum(1))[:, None, None, None].expand_as(target_BCHW)
        return answer if want == "prediction" else self.distance(answer, target_BCHW, region_B1HW)

    def distance(self, prediction: Tensor, other: Tensor, region_B1HW: Tensor) -> Tensor:
        return ((prediction - other).square() * region_B1HW).flatten(1).sum(1) / region_B1HW.flatten(1).sum(1)

    def random_prediction(self, prediction: Tensor, draws_B: Tensor) -> Tensor:
        return (draws_B % 7 / 7.0)[:, None, None, None].expand_as(prediction)

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        return paste(self(visible_BCHW, visible_BCHW, region_B1HW, draws_B, "prediction"), visible_BCHW, region_B1HW)

    def encoder(self) -> tuple[nn.Module, ...]:
        return (self.enc,)

    def bottleneck(self) -> tuple[nn.Module, ...]:
        return (self.enc, self.dec)


def batch(levels: Sequence[int], weights: Sequence[float] = (), *, draws: Sequence[int] = (), contrast: int = 0) -> Batch:
    """Images of one grey level each out of 255, `contrast` darker and brighter in turn from pixel to pixel."""
    board = np.indices((8, 8)).sum(0)[:, :, None] % 2 * 2 - 1
    count = len(levels)
    return Batch(
        images=np.stack([(level + contrast * board).astype(np.uint8) for level in levels]),
        groups=np.zeros(count, np.int64),
        weights=np.array(weights or [1.0] * count, np.float32),
        rows=np.arange(count),
        draws=np.array(draws or np.arange(count) + 3, np.int64),
    )


def context(model: ImageModel, world_size: int = 1, total: Callable[[Tensor], Tensor] = ALONE) -> LossContext:
    """A rank's context; the teacher is the original."""
    teacher = Tiny(*ORIGINAL).requires_grad_(False)
    return LossContext(
        task=TASK, device=torch.device("cpu"), world_size=world_size, sum=total, shape=lambda: model, teacher=lambda: teacher
    )


def gradient(losses: Losses, model: Tiny) -> np.ndarray:
    """dL/d(a0, a1, b)."""
    model.zero_grad()
    losses.total.backward()
    parts = [parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in model.parameters()]
    return torch.cat(parts).numpy()


def by_loss(level: float, aim: float | None = None, weights: Sequence[float] = WEIGHTS) -> np.ndarray:
    """Gradient of (b * (a0 + a1) * m - aim)^2 for an image of grey level `level` out of 255; aim: that level itself."""
    a0, a1, b = weights
    x = level / 255
    m = SHOWN * x
    slope = 2 * (b * (a0 + a1) * m - (x if aim is None else aim))
    return slope * np.array([b * m, b * m, (a0 + a1) * m])


def answer(level: float, weights: Sequence[float] = ORIGINAL) -> float:
    """The prediction for an image of this grey level."""
    return weights[2] * (weights[0] + weights[1]) * SHOWN * level / 255


def by_features(level: float, aim: Sequence[float]) -> np.ndarray:
    """Gradient of the mean of (a_i * m - aim_i)^2 over both features; the decoder has none."""
    m = SHOWN * level / 255
    return np.array([*((a * m - wanted) * m for a, wanted in zip(WEIGHTS[:2], aim, strict=True)), 0.0])


def features(level: float) -> list[float]:
    """The original's features of an image."""
    return [a * SHOWN * level / 255 for a in ORIGINAL[:2]]


Build = Callable[[LossContext], Callable[[nn.Module, Any], Losses]]


def gradient_alone(build: Build, batches: Any) -> np.ndarray:
    model = Tiny(*WEIGHTS)
    return gradient(build(context(model))(model, batches), model)


def gradient_on_two_ranks(build: Build, *parts: Any) -> np.ndarray:
    """The mean of two ranks' gradients, as DeepSpeed takes it; the ranks are threads whose sums meet at a barrier."""
    barrier, given, found = threading.Barrier(2, timeout=20), [torch.zeros(0)] * 2, [np.zeros(0)] * 2

    def work(rank: int) -> None:
        def total(values: Tensor) -> Tensor:
            given[rank] = values.detach().double()
            barrier.wait()
            summed = given[0] + given[1]
            barrier.wait()
            return summed

        try:
            model = Tiny(*WEIGHTS)
            found[rank] = gradient(build(context(model, 2, total))(model, parts[rank]), model)
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (found[0] + found[1]) / 2


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.allclose(found, wanted, rtol=1e-4, atol=1e-6))


def obeys_padding_and_ranks(build: Build, *, pairs: bool = True) -> None:
    """Images of weight 0 weigh nothing, and two ranks with unequal parts of a batch have together the gradient of one."""
    whole, padded = batch([51, 102, 204], draws=[3, 4, 5]), batch([51, 102, 204, 255], [1, 1, 1, 0], draws=[3, 4, 5, 6])
    first, second = batch([51, 102], draws=[3, 4]), batch([204, 0], [1, 0], draws=[5, 9])
    forget, forget_padded = batch([153, 240], draws=[8, 9]), batch([153, 240, 10], [1, 1, 0], draws=[8, 9, 10])
    forget_parts = batch([153], draws=[8]), batch([240], draws=[9])
    if pairs:
        expected = gradient_alone(build, (whole, forget))
        assert close(gradient_alone(build, (padded, forget_padded)), expected)
        assert close(gradient_on_two_ranks(build, (first, forget_parts[0]), (second, forget_parts[1])), expected)
    else:
        expected = gradient_alone(build, whole)
        assert close(gradient_alone(build, padded), expected)
        assert close(gradient_on_two_ranks(build, first, second), expected)
    assert np.abs(expected).max() > 1e-3
