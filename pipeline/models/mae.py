"""Masked autoencoder with vision transformers (ViT-MAE): hidden patches are predicted from visible ones.

After arXiv 2111.06377; the network is `ViTMAEForPreTraining` of transformers. It completes regions that leave whole patches
visible (inpainting, outpainting), not images that are degraded everywhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils.logging import disable_progress_bar

from pipeline.config import Positive, Share
from pipeline.draws import uniform
from pipeline.errors import CheckpointError, ConfigError
from pipeline.kernels.attention import ATTENTION
from pipeline.kernels.patch_loss import patch_loss
from pipeline.models.base import ImageModel, Want, paste
from pipeline.records import record

__all__ = ["Config", "MaskedAutoencoder", "build"]


@record
class Config:
    """Masked autoencoder; the defaults are ViT-Base."""

    folder: str = ""
    """Local folder with config.json and safetensors weights of a ViTMAEForPreTraining; all sizes are then read from there."""
    image_size: Positive = 224
    """Height and width in pixels; a multiple of patch_size."""
    patch_size: Positive = 16
    """Height and width of a patch in pixels."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    width: Positive = 768
    """Size of the encoder's tokens; a multiple of 4 and of heads."""
    layers: Positive = 12
    """Layers of the encoder."""
    heads: Positive = 12
    """Attention heads of the encoder."""
    decoder_width: Positive = 512
    """Size of the decoder's tokens; a multiple of 4 and of decoder_heads."""
    decoder_layers: Positive = 8
    """Layers of the decoder."""
    decoder_heads: Positive = 16
    """Attention heads of the decoder."""
    mlp_ratio: Positive = 4
    """Hidden units of each layer's MLP, as a multiple of its width; in encoder and decoder."""
    mask: Literal["task", "random"] = "random"
    """What training hides: the patches that the task's region touches, or patches at random. Completion hides the former."""
    hidden_share: Share = 0.75
    """Share of patches that `random` hides."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from pixels in [0, 1]: a number for each channel, or one for all; with a folder, as its weights were trained."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Divides what is left; as many numbers as for `mean`, or one."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: less memory, about a third more time."""
    shadow_resets: Literal["decoder", "late", "encoder", "all"] = "encoder"
    """What a shadow model resets; `late` is the encoder's last two layers and the decoder."""


class MaskedAutoencoder(ImageModel):
    """ViT-MAE on pixels in [0, 1]. B images, L patches in rows of a square grid; tokens are patches after a class token.

    No buffer (engines round them to bf16), no dropout: a loss is a function of weights, sample and draw. One exception: as many
    patches are hidden in each image of a batch, so where regions touch more in some, others lose further ones, by their draws.
    """

    gives_both = True

    def __init__(self, config: Config, library: Any) -> None:
        super().__init__()
        self.config, self.image_size, self.channels = config, library.image_size, library.num_channels
        self.patch_size, self.side = library.patch_size, library.image_size // library.patch_size
        # MAE rounds down; a little more guards against shares that are not exact in binary.
        self.kept = int(self.side**2 * (1 - config.hidden_share) + 1e-6)
        disable_progress_bar()  # one for each rank would fill the log
        if config.folder and torch.get_default_device().type != "meta":
            self.net = _load(config.folder, library)
        else:
            self.net = ViTMAEForPreTraining(library)
            _place(self.net, self.side)
            self.reset(self.net)
        if config.activation_checkpointing:
            switch: Any = getattr(self.net, "activation_checkpointing_enable", None) or self.net.gradient_checkpointing_enable
            switch({"use_reentrant": False})

    def admit(self, region_B1HW: Tensor) -> None:
        """Refuses a region that touches every patch."""
        self._ranks(region_B1HW, torch.zeros(len(region_B1HW), dtype=torch.int64), "task")

    def _ranks(self, region_B1HW: Tensor, draws_B: Tensor, mask: str) -> tuple[Tensor, int]:
        """The order in which patches stay visible, fp32 [B, L], and how many do. Raises ConfigError where none can."""
        order_BL, kept = uniform(draws_B, self.side**2, purpose=31), self.kept
        if mask == "task":
            touched_BL = nn.functional.max_pool2d(region_B1HW.float(), self.patch_size).flatten(1)
            order_BL, kept = order_BL + touched_BL, self.side**2 - int(touched_BL.sum(1).max())
        if kept == 0:
            cure = "choose a task that hides a part (inpainting), another model (autoencoder), or smaller patches"
            raise ConfigError("task: its region touches every patch, and model mae predicts from visible patches", cure)
        # Ranks instead of the numbers themselves: a stable sort breaks ties alike on any device, the library's need not.
        return order_BL.argsort(dim=1, stable=True).argsort(dim=1).float(), kept

    def _normalised(self, images_BCHW: Tensor) -> Tensor:
        """Pixels as the network sees and predicts them."""
        mean, std = (images_BCHW.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (self.config.mean, self.config.std))
        return (images_BCHW - mean) / std

    def _run(self, pixels_BCHW: Tensor, ranks_BL: Tensor, kept: int, want: Want) -> Tensor:
        """Tokens of visible patches, fp32 [B, 1 + kept, width], for `features`; the predicted image, fp32 [B, C, H, W], for
        `prediction`; else predicted patches, normalised."""
        embeddings = self.net.vit.embeddings
        # The library keeps int(L * (1 - mask_ratio)) patches; half a patch more guards against rounding.
        embeddings.config.mask_ratio = 1 - (kept + 0.5) / ranks_BL.shape[1]
        pixels = self._normalised(pixels_BCHW).to(embeddings.patch_embeddings.projection.weight.dtype)
        encoded: Any = self.net.vit(pixels, noise=ranks_BL)
        if want == "features":
            return encoded.last_hidden_state.float()
        patches: Tensor = self.net.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
        return self._image(patches) if want == "prediction" else patches

    def _image(self, patches_BLD: Tensor) -> Tensor:
        image: Tensor = self.net.unpatchify(patches_BLD.float())
        mean, std = (image.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (self.config.mean, self.config.std))
        return image * std + mean

    def hidden(self, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """The pixels that training hides for these draws, bool [B, 1, H, W]: whole patches."""
        ranks_BL, kept = self._ranks(region_B1HW, draws_B, self.config.mask)
        patches, size = (ranks_BL >= kept).view(-1, 1, self.side, self.side), self.patch_size
        return patches.repeat_interleave(size, 2).repeat_interleave(size, 3)

    def judged(self, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """See `ImageModel.judged`; all of the hidden patches where they are hidden at random."""
        return region_B1HW if self.config.mask == "task" else self.hidden(region_B1HW, draws_B)

    def forward(
        self, visible_BCHW: Tensor, target_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor, want: Want = "loss"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `ImageModel.forward`; raises ConfigError where the task leaves no patch visible.

        With mask `task` the encoder sees patches of `visible` and the loss is the mean squared error of pixels in the region;
        with `random` it sees patches of `target`, as MAE trains, and the loss is that of all pixels of hidden patches.
        Features are tokens, fp32 [B, 1 + visible patches, width]; the prediction is the whole image, fp32 [B, C, H, W], on
        the scale of [0, 1] but not clamped, and nothing was asked of its visible patches.
        """
        pixels_BCHW = visible_BCHW if self.config.mask == "task" else target_BCHW
        ranks_BL, kept = self._ranks(region_B1HW, draws_B, self.config.mask)
        answer = self._run(pixels_BCHW, ranks_BL, kept, want)
        if want in ("features", "prediction"):
            return answer
        loss = self._loss(answer, target_BCHW, region_B1HW, ranks_BL >= kept)
        return (loss, self._image(answer)) if want == "both" else loss

    def _loss(self, patches_BLD: Tensor, target_BCHW: Tensor, region_B1HW: Tensor, hidden_BL: Tensor) -> Tensor:
        if self.config.mask == "task":
            return self.distance(self._image(patches_BLD), target_BCHW, region_B1HW)
        # Whole patches are judged, so no image need be made of them: squares weigh as they would on the scale of [0, 1].
        std = torch.tensor(self.config.std, device=patches_BLD.device).expand(self.channels)
        target = self.net.patchify(self._normalised(target_BCHW))
        return patch_loss(patches_BLD, target, hidden_BL, weight=std.square().repeat(self.patch_size**2))

    def distance(self, prediction: Tensor, other: Tensor, region_B1HW: Tensor) -> Tensor:
        """Mean squared difference of images in the region, fp32 [B]."""
        squared = (prediction - other).square().mean(dim=1, keepdim=True)
        weight = region_B1HW.float()
        return (squared * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """The region filled in, from patches that it does not touch; see `ImageModel.complete`. Raises as `forward` does."""
        answer = self._run(visible_BCHW, *self._ranks(region_B1HW, draws_B, "task"), "prediction")
        return paste(answer.clamp(0, 1), visible_BCHW, region_B1HW)

    def encoder(self) -> tuple[nn.Module, ...]:
        """Embeddings and the encoder's layers."""
        return (self.net.vit,)

    def bottleneck(self) -> tuple[nn.Module, ...]:
        """What `shadow_resets` names. No choice is a true bottleneck: see benchmarks/results/methods.md."""
        vit, decoder = self.net.vit, self.net.decoder
        late = (*vit.layers[-2:], vit.layernorm, decoder)
        return {"decoder": (decoder,), "late": late, "encoder": (vit,), "all": (vit, decoder)}[self.config.shadow_resets]

    @torch.no_grad()
    def reset(self, module: nn.Module) -> None:
        """MAE's initialisation from torch's current generator; position embeddings are tables and stay."""
        for name, weight in module.named_parameters():
            if weight.ndim == 1:  # norms' weights, and all biases
                nn.init.constant_(weight, float(name.endswith("weight")))
            elif weight.ndim == 4:
                # Patches are projected as by a dense layer (xavier), which transformers 5.23 means to do and skips.
                bound = math.sqrt(6 / (weight[0].numel() + len(weight)))
                nn.init.uniform_(weight, -bound, bound)
            elif "pos" not in name:
                nn.init.normal_(weight, std=0.02)

    def export(self, folder: Path) -> bool:
        """`save_pretrained`: config.json and model.safetensors, which `folder` of the configuration reads again."""
        self.net.config.mask_ratio = self.config.hidden_share
        self.net.save_pretrained(folder)
        return True


@torch.no_grad()
def _place(net: ViTMAEForPreTraining, side: int) -> None:
    """Write MAE's sine-cosine tables; transformers 5.23 leaves both at zero, a model that cannot tell patches apart."""
    for table in (net.vit.embeddings.position_embeddings, net.decoder.decoder_pos_embed):
        quarter = table.shape[-1] // 4
        angles = torch.arange(side).double()[:, None] * 10000.0 ** (-torch.arange(quarter).double() / quarter)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        # Columns before rows, as in the released weights; the class token, at 0, has none.
        table[0, 1:] = torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, 0)], dim=1).float()


def _read(folder: Path) -> ViTMAEConfig:
    """The library's configuration of a local folder with safetensors weights that can complete images."""
    if not (folder / "config.json").is_file():
        cure = "download a model of the Hugging Face hub first (hf download NAME --local-dir FOLDER) and name that folder"
        raise ConfigError(f"model.folder: no file config.json in a folder '{folder}'", cure)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (kind := found.get("model_type")) != "vit_mae":
        raise ConfigError(f"model.folder: '{folder}' holds a model of type {kind}, not vit_mae", "name another folder")
    if found.get("norm_pix_loss"):
        fault = "with norm_pix_loss: true pixels are normalised by statistics of hidden patches; it cannot complete images"
        cure = "use weights trained with norm_pix_loss: false, or train from random ones: leave folder out"
        raise ConfigError(f"model.folder: '{folder}': {fault}", cure)
    if not any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        raise CheckpointError(f"model.folder: no model.safetensors in '{folder}'", "pickles are not read: convert them elsewhere")
    # Dropout would be randomness that is not a function of the draws.
    fixed: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": ATTENTION}
    return ViTMAEConfig.from_pretrained(folder, local_files_only=True, **fixed)


def _load(folder: str, library: ViTMAEConfig) -> ViTMAEForPreTraining:
    options: Any = {"config": library, "dtype": torch.float32, "output_loading_info": True}
    try:
        loaded: Any = ViTMAEForPreTraining.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
        if missing := sorted(loaded[1]["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, e.g. {missing[0]}")  # the library makes random ones
    except Exception as fault:  # the library's and safetensors' errors share no class
        raise CheckpointError(f"model.folder: '{folder}': {fault}", "name a folder that save_pretrained wrote") from fault
    return loaded[0].train()


def _fresh(config: Config) -> ViTMAEConfig:
    sizes: Any = {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": config.channels}
    for part, width in (("", config.width), ("decoder_", config.decoder_width)):
        sizes |= {f"{part}hidden_size": width, f"{part}intermediate_size": width * config.mlp_ratio}
        sizes[f"{part}num_hidden_layers"] = getattr(config, f"{part}layers")
        sizes[f"{part}num_attention_heads"] = getattr(config, f"{part}heads")
    return ViTMAEConfig(attn_implementation=ATTENTION, **sizes)  # type: ignore[call-arg]


def build(config: Config) -> MaskedAutoencoder:
    """Build with weights of `folder`, or random ones from torch's current generator; on device meta without weights.

    Raises ConfigError for sizes or a folder that cannot work, CheckpointError for weights that are missing or unreadable.
    """
    library = _read(Path(config.folder)) if config.folder else _fresh(config)
    size, patch, channels = library.image_size, library.patch_size, library.num_channels
    if not (isinstance(size, int) and isinstance(patch, int) and size % patch == 0 and size >= 2 * patch):
        raise ConfigError(f"model.image_size: {size} is not two or more patches of {patch}", "write e.g. 224 and 16")
    for part in ("", "decoder_"):
        width, heads = getattr(library, f"{part}hidden_size"), getattr(library, f"{part}num_attention_heads")
        if width % 4 or width % heads:
            raise ConfigError(f"model.{part}width: {width} is not a multiple of 4 and of {heads} heads", "write e.g. 128 and 4")
    for name, numbers in (("mean", config.mean), ("std", config.std)):
        if len(numbers) not in (1, channels) or (name == "std" and min(numbers) <= 0):
            raise ConfigError(f"model.{name}: {list(numbers)} is not 1 or {channels} numbers (std: above 0)", "write e.g. [0.5]")
    model = MaskedAutoencoder(config, library)
    if config.mask == "random" and not 0 < model.kept < model.side**2:
        raise ConfigError(f"model.hidden_share: {config.hidden_share} hides all of {model.side**2} patches or none", "write 0.75")
    return model
