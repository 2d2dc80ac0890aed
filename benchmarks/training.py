"""Models of the engine's tables, a random batch for each, and steps under the engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import component
from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.distributed import ProcessGroup, join_group
from pipeline.engine.fused import FusedSteps
from pipeline.models.base import ImageModel

MODELS: dict[str, dict[str, Any]] = {
    "autoencoder": {"component": "autoencoder", "image_size": 64, "channels": 3, "width": 64},
    "middle": {
        "component": "mae",
        "image_size": 64,
        "channels": 3,
        "patch_size": 8,
        "width": 384,
        "layers": 6,
        "heads": 6,
        "decoder_width": 192,
        "decoder_layers": 2,
        "decoder_heads": 6,
    },
    "mae": {"component": "mae"},
    "mae_large": {"component": "mae", "width": 1024, "layers": 24, "heads": 16},
}
"""`middle`: a ViT-MAE of 12 million parameters; `mae` and `mae_large`: ViT-Base and ViT-Large at 224 px."""
BATCH = {"autoencoder": 32, "middle": 16, "mae": 8, "mae_large": 8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What a model is given: fp32 [B, C, H, W] twice, bool [B, 1, H, W], int64 [B]."""

    visible: Tensor
    target: Tensor
    region: Tensor
    draws: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        """Mean over the batch."""
        found: Tensor = model(self.visible, self.target, self.region, self.draws).float().mean()
        return found


def built(model: str) -> ImageModel:
    """With the random weights of seed 0, on a GPU where there is one."""
    torch.manual_seed(0)
    made: ImageModel = component.build("model", MODELS[model])
    return made.to(device())


def device() -> torch.device:
    """Where models and batches lie."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_of(model: ImageModel, size: int, seed: int = 0) -> Batch:
    """Random images whose middle is hidden."""
    side = model.image_size
    images = torch.rand((size, model.channels, side, side), generator=torch.Generator().manual_seed(seed))
    region = torch.zeros(size, 1, side, side, dtype=torch.bool)
    region[..., side // 4 : -side // 4, side // 4 : -side // 4] = True
    images, region, draws = (part.to(device()) for part in (images, region, torch.arange(size) + 1000 * seed))
    return Batch(visible=images.masked_fill(region, 0.5), target=images, region=region, draws=draws)


def group() -> ProcessGroup:
    """This process's, alone or as torchrun has it."""
    joined = join_group()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; before joining it would mean a launcher
    return joined


def engine(
    model: ImageModel,
    ranks: ProcessGroup,
    *,
    zero: int,
    precision: str,
    size: int,
    rate: float = 1e-6,
    compiled: bool = False,
    steps: Callable[[list[nn.Parameter]], FusedSteps] | None = None,
) -> Backend:
    """The model under DeepSpeed, as phases have it."""
    return Backend(
        model,
        engine=EngineConfig(zero_stage=zero, precision=precision, compile=compiled),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(learning_rate=rate, steps=10**6, decay=False),
        micro_batch=size,
        group=ranks,
        steps=steps,
    )
