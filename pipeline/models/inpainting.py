"""Diffusion model that fills a region given the rest of the image (Palette): diffusers' UNet2DModel and DDIM sampler.

Palette (Saharia et al., Palette: Image-to-image diffusion models, arXiv 2111.05826) denoises the hidden region and keeps the
known pixels clean. Works with any region; where it is the whole image (colourisation, denoising, super-resolution), the
visible image is the only condition. No EMA copy and no buffer: nothing but weights carries training data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from pipeline.config import Positive, PositiveFloat
from pipeline.draws import normal, uniform
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.base import ImageModel, Want, paste
from pipeline.records import record

__all__ = ["Config", "Inpainting", "build"]

_TIME, _NOISE, _START = 51, 52, 53  # purposes of `pipeline.draws`
_LIBRARY = {"noise": "epsilon", "image": "sample", "velocity": "v_prediction"}
_BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}
_NEEDED = {"center_input_sample": False, "time_embedding_type": "positional", "mid_block_type": "UNetMidBlock2D", "dropout": 0.0}
_NEEDED |= {"class_embed_type": None, "num_class_embeds": None}


@record
class Config:
    """Diffusion in the hidden region."""

    folder: str = ""
    """Local folder with config.json and safetensors of a UNet2DModel, as `save_pretrained` writes them; empty: random weights.
    Its sizes count then, and the fields from `block_out_channels` to `norm_num_groups` are not read."""
    image_size: Positive = 256
    """Height and width in pixels; a multiple of 2 ** (levels - 1)."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    block_out_channels: tuple[Positive, ...] = (64, 128, 256, 512)
    """Channels at each level; each level after the first halves height and width."""
    layers_per_block: Positive = 2
    """Residual blocks at each level, on the way down; one more on the way up."""
    attention_levels: tuple[int, ...] = ()
    """Levels with self-attention, 0 for full resolution; the middle block always has it."""
    attention_head_dim: Positive = 32
    """Channels an attention head."""
    norm_num_groups: Positive = 32
    """Groups of each GroupNorm; divides the channels of every level."""
    train_timesteps: Positive = 2000
    """Levels of noise T."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """Variance that each level adds, by diffusers' names; the last one (cosine) does not read the next two fields."""
    beta_start: PositiveFloat = 1e-6
    """Variance at the first level; Palette's 1e-6 to 0.01 belongs to 2000 levels, DDPM's 1e-4 to 0.02 to 1000."""
    beta_end: PositiveFloat = 0.01
    """Variance at the last level, below 1."""
    prediction: Literal["noise", "image", "velocity"] = "noise"
    """What the network predicts. `noise` is Palette's; the others reach a usable image in far fewer training steps."""
    sample_steps: Positive = 20
    """Steps of the sampler; divides `train_timesteps`."""
    activation_checkpointing: bool = False
    """Recompute residual blocks in the backward pass: less memory, about a third more time."""


class Inpainting(ImageModel):
    """A U-Net that sees [noisy image (C), visible image (C), region (1)] and predicts noise, image or velocity.

    Pixels are scaled to [-1, 1]. With alpha_t the product of 1 - beta up to level t, and eps ~ N(0, 1):
        noisy    = sqrt(alpha_t) * image + sqrt(1 - alpha_t) * eps   in the region (DDPM, arXiv 2006.11239, eq. 4)
        noisy    = visible image                                     outside it, free of noise in training and sampling
        velocity = sqrt(alpha_t) * eps - sqrt(1 - alpha_t) * image   (Salimans & Ho, arXiv 2202.00512, section 4)
    t is uniform; t and eps are functions of a sample's draw.
    """

    probe_draws = 8
    gives_both = True

    def __init__(self, config: Config, unet: UNet2DModel) -> None:
        super().__init__()
        self.image_size, self.channels = config.image_size, config.channels
        self.unet, self._prediction, self._levels = unet, config.prediction, config.train_timesteps
        if config.activation_checkpointing:
            unet.enable_gradient_checkpointing()
        # The tables are plain attributes on the CPU: not saved, not cast, real even where weights are built on `meta`.
        with torch.device("cpu"):
            self._scheduler = _scheduler(config)
            self._scheduler.set_timesteps(config.sample_steps)

    def _input(self, noisy_BCHW: Tensor, known_BCHW: Tensor, region_B1HW: Tensor) -> Tensor:
        return torch.cat([noisy_BCHW, known_BCHW, region_B1HW.float()], dim=1).to(self.unet.dtype)

    def _predicted(self, input_BDHW: Tensor, times_B: Tensor) -> Tensor:
        output: Tensor = self.unet(input_BDHW, times_B, return_dict=False)[0]
        return output.float()

    def _middle(self, input_BDHW: Tensor, times_B: Tensor) -> Tensor:
        """The first half of UNet2DModel.forward, by calls of its own modules."""
        time = self.unet.time_embedding(self.unet.time_proj(times_B).to(input_BDHW.dtype))
        hidden: Tensor = self.unet.conv_in(input_BDHW)
        for block in self.unet.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=time)
        return self._mid()(hidden, time).float().flatten(1)

    def _mid(self) -> nn.Module:
        return cast(nn.Module, self.unet.mid_block)

    def _diffused(self, target_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noisy image, what the network should predict of it (both fp32 [B, C, H, W]), and the level t (int64 [B])."""
        times = (uniform(draws_B, 1, purpose=_TIME)[:, 0] * self._levels).long().clamp_max(self._levels - 1)
        image = 2.0 * target_BCHW.float() - 1.0
        noise = normal(draws_B, image[0].numel(), purpose=_NOISE).view_as(image)
        alpha = self._scheduler.alphas_cumprod.to(times.device)[times].view(-1, 1, 1, 1)
        signal, spread = alpha.sqrt(), (1.0 - alpha).sqrt()
        wanted = {"noise": noise, "image": image, "velocity": signal * noise - spread * image}[self._prediction]
        return signal * image + spread * noise, wanted, times

    def forward(
        self, visible_BCHW: Tensor, target_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor, want: Want = "loss"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mean squared error of the prediction in the region, at one level of noise a sample; see `ImageModel.forward`.

        `features` is the output of the middle block at that level, fp32 [B, channels * height * width]; `prediction` is what
        the network says, noise at the defaults, fp32 [B, C, H, W] over the whole image, unbounded.
        """
        noisy, wanted, times = self._diffused(target_BCHW, draws_B)
        known = 2.0 * visible_BCHW.float() - 1.0
        stacked = self._input(paste(noisy, known, region_B1HW), known, region_B1HW)
        if want == "features":
            return self._middle(stacked, times)
        predicted = self._predicted(stacked, times)
        if want == "prediction":
            return predicted
        loss = self.distance(predicted, wanted, region_B1HW)
        return (loss, predicted) if want == "both" else loss

    def distance(self, prediction: Tensor, other: Tensor, region_B1HW: Tensor) -> Tensor:
        """Mean squared difference of two predictions (noise, image in [-1, 1] or velocity) in the region, fp32 [B]."""
        weight = region_B1HW.float().expand_as(prediction)
        return ((prediction - other).square() * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

    def random_prediction(self, prediction: Tensor, draws_B: Tensor) -> Tensor:
        """Noise N(0, 1), not clamped, where noise or velocity is predicted; else a random image scaled to [-1, 1]."""
        if self._prediction == "image":
            return 2.0 * super().random_prediction(prediction, draws_B) - 1.0
        return normal(draws_B, prediction[0].numel(), purpose=91).view_as(prediction)

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """Deterministic DDIM (Song et al., arXiv 2010.02502, eq. 12 with sigma 0) from noise that is a function of the draw.

        Known pixels are put back at each step, as in training. The predicted image is clipped to [-1, 1] at each step and the
        noise is derived from it again. See `ImageModel.complete`.
        """
        known = 2.0 * visible_BCHW.float() - 1.0
        start = normal(draws_B, known[0].numel(), purpose=_START).view_as(known)
        sample = paste(start, known, region_B1HW)
        for time in self._scheduler.timesteps.tolist():
            predicted = self._predicted(self._input(sample, known, region_B1HW), torch.full_like(draws_B, time))
            moved = self._scheduler.step(predicted, time, sample, eta=0.0, use_clipped_model_output=True, return_dict=False)[0]
            sample = paste(moved, known, region_B1HW)
        return paste((0.5 * sample + 0.5).clamp(0, 1), visible_BCHW, region_B1HW)

    def encoder(self) -> tuple[nn.Module, ...]:
        """All before the way up: first convolution, time embedding, down blocks and middle block."""
        return self.unet.conv_in, self.unet.time_embedding, self.unet.down_blocks, self._mid()

    def bottleneck(self) -> tuple[nn.Module, ...]:
        """The middle block and the deepest level; what is finer than that passes by it through skip connections."""
        return self.unet.down_blocks[-1], self._mid(), self.unet.up_blocks[0]

    def export(self, folder: Path) -> bool:
        """Write config.json, safetensors and scheduler_config.json; `Config.folder` reads them again, bit for bit."""
        self.unet.save_pretrained(str(folder), safe_serialization=True)
        self._scheduler.save_pretrained(str(folder))
        return True


def _scheduler(config: Config) -> DDIMScheduler:
    # `trailing` starts at the last level, where almost only noise is left (Lin et al., arXiv 2305.08891, table 2).
    kind, betas = _LIBRARY[config.prediction], (config.beta_start, config.beta_end, config.beta_schedule)
    return DDIMScheduler(config.train_timesteps, *betas, prediction_type=kind, timestep_spacing="trailing")


def _settings(config: Config) -> dict[str, Any]:
    """The UNet2DModel's configuration by the fields."""
    widths, levels = config.block_out_channels, len(config.block_out_channels)
    if not levels or not set(config.attention_levels) <= set(range(levels)):
        raise ConfigError(f"model.attention_levels: {config.attention_levels} of {levels} levels", "0 is the finest level")
    # Attention stands at the levels named and in the middle block, which is as wide as the last level.
    split = {"norm_num_groups": widths, "attention_head_dim": [widths[level] for level in (*config.attention_levels, -1)]}
    for name, divided in split.items():
        if any(width % getattr(config, name) for width in divided):
            raise ConfigError(f"model.{name}: {getattr(config, name)} does not divide all of {divided}", "change either")
    kinds = ["Attn" if level in config.attention_levels else "" for level in range(levels)]
    return {
        "sample_size": config.image_size,
        "in_channels": 2 * config.channels + 1,
        "out_channels": config.channels,
        "block_out_channels": widths,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "attention_head_dim": config.attention_head_dim,
        "norm_num_groups": config.norm_num_groups,
    }


def _folder_settings(config: Config) -> dict[str, Any]:
    """The folder's; refuses a U-Net that this model cannot drive, or that was trained with another schedule."""
    path = Path(config.folder)
    if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
        raise ConfigError(
            f"model.folder: {path} is not a local folder with config.json and safetensors",
            "name one that UNet2DModel.save_pretrained wrote; pickled weights are not read",
        )
    written = UNet2DModel.load_config(str(path), local_files_only=True)
    if written.get("_class_name") != "UNet2DModel":
        raise ConfigError(f"model.folder: {path} holds a {written.get('_class_name')}", "name the folder of a UNet2DModel")
    with torch.device("meta"):  # for the library's defaults
        settings: dict[str, Any] = dict(UNet2DModel.from_config(written).config)
    wanted = {"in_channels": 2 * config.channels + 1, "out_channels": config.channels, **_NEEDED}
    faults = [f"{name} is {settings[name]}, not {value}" for name, value in wanted.items() if settings[name] != value]
    faults += [f"no block {kind}" for kind in {*settings["down_block_types"], *settings["up_block_types"]} - _BLOCKS]
    if (path / "scheduler_config.json").is_file():
        saved, ours = DDIMScheduler.load_config(str(path), local_files_only=True), dict(_scheduler(config).config)
        names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
        faults += [f"{name} is {saved[name]}, not {ours[name]}" for name in names if saved.get(name, ours[name]) != ours[name]]
    if faults:
        raise ConfigError(f"model.folder: {path}: {'; '.join(faults)}", "correct the model section or the folder")
    return settings


def build(config: Config) -> Inpainting:
    """Build with the folder's weights, or with random ones from torch's current generator.

    Raises:
        ConfigError: no such folder, a U-Net of another kind, or sizes that cannot work.
        CheckpointError: the folder's weights do not fit its config.json.
    """
    settings = _folder_settings(config) if config.folder else _settings(config)
    halvings = len(settings["block_out_channels"]) - 1
    if config.image_size % 2**halvings:
        raise ConfigError(f"model.image_size: {config.image_size} cannot be halved {halvings} times", "write e.g. 256")
    if config.train_timesteps % config.sample_steps:
        raise ConfigError(f"model.sample_steps: {config.sample_steps} does not divide {config.train_timesteps}", "write e.g. 20")
    if not config.beta_start <= config.beta_end < 1:
        raise ConfigError(f"model.beta_end: {config.beta_end} is not in [beta_start, 1)", "write e.g. 0.02")
    if not config.folder or torch.get_default_device().type == "meta":  # there, only names and shapes are wanted
        return Inpainting(config, UNet2DModel.from_config(settings))
    try:
        unet, found = UNet2DModel.from_pretrained(
            config.folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as fault:
        raise CheckpointError(f"{config.folder}: the weights do not load: {fault}", "restore the folder") from None
    if faults := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise CheckpointError(f"{config.folder}: weights missing or unknown: {', '.join(faults[:3])}", "restore the folder")
    return Inpainting(config, unet.train())
