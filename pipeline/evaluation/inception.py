"""The InceptionV3 that the Frechet Inception Distance is defined on, as a table of its layers.

Architecture: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016. It differs from the usual
one as the TensorFlow graph `inception-2015-12-05` of Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017,
does: average pools leave the padding out, the last block pools by maximum, and there are 1,008 classes. Parameters are
named as in the file `pt_inception-2015-12-05-6726825d.pth` that users have: 94 convolutions, 23,850,960 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CLASSES", "SIZE", "WIDTH", "Inception"]

SIZE, WIDTH, CLASSES = 299, 2048, 1008

Step = tuple[str, int, tuple[int, int], int]
"""Name, output channels, kernel height and width, stride. Stride 1 keeps height and width, stride 2 pads nothing."""

Branch = tuple[Step | tuple[Step, Step], ...]
"""Steps one after the other; a pair of steps reads the same input and its outputs are concatenated."""


def _step(name: str, out: int, height: int = 1, width: int = 0, stride: int = 1) -> Step:
    return f"branch{name}", out, (height, width or height), stride


def _a(pooled: int) -> tuple[Branch, ...]:
    return (
        (_step("1x1", 64),),
        (_step("5x5_1", 48), _step("5x5_2", 64, 5)),
        (_step("3x3dbl_1", 64), _step("3x3dbl_2", 96, 3), _step("3x3dbl_3", 96, 3)),
        (_step("_pool", pooled),),
    )


def _c(inner: int) -> tuple[Branch, ...]:
    tall, wide = (7, 1), (1, 7)
    double = tuple(_step(f"7x7dbl_{n}", inner, *(tall if n % 2 == 0 else wide)) for n in (2, 3, 4))
    return (
        (_step("1x1", 192),),
        (_step("7x7_1", inner), _step("7x7_2", inner, *wide), _step("7x7_3", 192, *tall)),
        (_step("7x7dbl_1", inner), *double, _step("7x7dbl_5", 192, *wide)),
        (_step("_pool", 192),),
    )


def _fork(name: str) -> tuple[Step, Step]:
    return _step(f"{name}a", 384, 1, 3), _step(f"{name}b", 384, 3, 1)


B: tuple[Branch, ...] = (
    (_step("3x3", 384, 3, stride=2),),
    (_step("3x3dbl_1", 64), _step("3x3dbl_2", 96, 3), _step("3x3dbl_3", 96, 3, stride=2)),
)
D: tuple[Branch, ...] = (
    (_step("3x3_1", 192), _step("3x3_2", 320, 3, stride=2)),
    (
        _step("7x7x3_1", 192),
        _step("7x7x3_2", 192, 1, 7),
        _step("7x7x3_3", 192, 7, 1),
        _step("7x7x3_4", 192, 3, stride=2),
    ),
)
E: tuple[Branch, ...] = (
    (_step("1x1", 320),),
    (_step("3x3_1", 384), _fork("3x3_2")),
    (_step("3x3dbl_1", 448), _step("3x3dbl_2", 384, 3), _fork("3x3dbl_3")),
    (_step("_pool", 192),),
)

# Block, input channels, branches.
BLOCKS = (
    ("Mixed_5b", 192, _a(32)),
    ("Mixed_5c", 256, _a(64)),
    ("Mixed_5d", 288, _a(64)),
    ("Mixed_6a", 288, B),
    ("Mixed_6b", 768, _c(128)),
    ("Mixed_6c", 768, _c(160)),
    ("Mixed_6d", 768, _c(160)),
    ("Mixed_6e", 768, _c(192)),
    ("Mixed_7a", 768, D),
    ("Mixed_7b", 1280, E),
    ("Mixed_7c", 2048, E),
)


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, width: int, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(images)))


class Mixed(nn.Module):
    """Branches side by side, their outputs concatenated by channel.

    A block with a pool branch keeps height and width; one without halves them and appends its input, pooled by maximum.
    """

    def __init__(self, width: int, branches: tuple[Branch, ...], *, maximum: bool) -> None:
        super().__init__()
        self.branches, self.maximum = branches, maximum
        for branch in branches:
            channels = width
            for step in branch:
                pair = step if isinstance(step[0], tuple) else (step,)
                for name, out, kernel, stride in pair:
                    padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if stride == 1 else (0, 0)
                    self.add_module(name, Unit(channels, out, kernel, stride, padding))
                channels = sum(one[1] for one in pair)

    def forward(self, images: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            value = self._pool(images) if branch[0][0] == "branch_pool" else images
            for step in branch:
                pair = step if isinstance(step[0], tuple) else (step,)
                value = torch.cat([self.get_submodule(one[0])(value) for one in pair], dim=1)
            outputs.append(value)
        if self.branches[-1][0][0] != "branch_pool":
            outputs.append(functional.max_pool2d(images, 3, stride=2))
        return torch.cat(outputs, dim=1)

    def _pool(self, images: Tensor) -> Tensor:
        if self.maximum:
            return functional.max_pool2d(images, 3, stride=1, padding=1)
        return functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


class Inception(nn.Module):
    """Features and logits of images.

    Forward: fp32 [B, 3, 299, 299], levels (255 x - 128) / 128 of x in [0, 1] -> features [B, 2048] (mean over the last
    map) and logits [B, 1008] without the layer's bias, which the Inception Score leaves out (Salimans et al. 2016).
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = Unit(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = Unit(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = Unit(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = Unit(80, 192, (3, 3), 1, (0, 0))
        for name, width, branches in BLOCKS:
            self.add_module(name, Mixed(width, branches, maximum=name == "Mixed_7c"))
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        value = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images_BCHW)))
        value = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(value, 3, stride=2)))
        value = functional.max_pool2d(value, 3, stride=2)
        for name, _, _ in BLOCKS:
            value = self.get_submodule(name)(value)
        features = value.mean(dim=(2, 3))
        return features, features @ self.fc.weight.T
