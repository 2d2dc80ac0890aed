"""Masked-token transformer over the codes of a VQ tokenizer (MaskGIT, MAGE): diffusers' VQModel and a pre-norm RoBERTa.

The transformer predicts the codes that the hidden region touches. Visible codes come from the degraded image, never from the
true one: the tokenizer's convolutions and norms reach across the whole image, so its codes tell what is hidden (the peers'
code tokenises the true image). Chang et al., MaskGIT, CVPR 2022: cosine schedule, iterative decoding; Li et al., MAGE, CVPR 2023:
random masks; van den Oord et al., Neural discrete representation learning, NeurIPS 2017, equation 3: the tokenizer's loss;
Mentzer et al., Finite scalar quantization, ICLR 2024: the lattice that the codebook starts from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from annotated_types import Ge, MinLen
from diffusers.models.autoencoders.vq_model import VQModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

from pipeline.config import NotNegativeFloat, Positive
from pipeline.draws import uniform
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.base import ImageModel, Want, paste
from pipeline.records import record

__all__ = ["VQGAN", "Config", "build"]

FILES = {"tokenizer": "diffusion_pytorch_model.safetensors", "transformer": "model.safetensors"}


@record
class Config:
    """Tokenizer, transformer, and how codes are hidden and found again."""

    folder: str = ""
    """Local folder that `export` wrote, which sets the sizes from block_out_channels to heads; empty: random weights."""
    image_size: Positive = 256
    """Height and width in pixels; a multiple of the tokenizer's reduction, 2 ** (len(block_out_channels) - 1)."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour."""
    block_out_channels: Annotated[tuple[Positive, ...], MinLen(2)] = (128, 128, 256, 256, 512)
    """Channels of the tokenizer at each resolution, the finest first; multiples of 4, better of 16."""
    layers_per_block: Positive = 2
    """Residual blocks of the tokenizer at each resolution."""
    latent_channels: Positive = 5
    """Size of a code's vector; where codebook is a whole power of it (4 ** 5), codes start as a lattice, else at random."""
    codebook: Annotated[int, Ge(2)] = 1024
    """Number of codes."""
    width: Positive = 768
    """Width of the transformer; a multiple of heads. Its dense layers are four times as wide."""
    layers: Annotated[int, Ge(2)] = 12
    """Layers of the transformer."""
    heads: Positive = 12
    """Attention heads."""
    mask: Literal["task", "random"] = "task"
    """What training hides. task: a random part of the codes that the region touches (MaskGIT); random: 50-100 % of all (MAGE)."""
    decode_steps: Positive = 8
    """Rounds of iterative decoding (MaskGIT: 8 to 12; the peers: 20)."""
    temperature: NotNegativeFloat = 0.0
    """0: always the likeliest code. Above: sampled codes, and the scale of the noise in choosing which to keep (the peers: 6)."""
    train_tokenizer: bool = True
    """Train tokenizer and transformer together; false: the tokenizer of `folder` stays as it is (the peers)."""
    commitment: NotNegativeFloat = 0.25
    """Weight of the term that draws latents to their codes."""
    spread: NotNegativeFloat = 0.1
    """Weight of the term that draws every code to the nearest latent, so that no code is left unused."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class VQGAN(ImageModel):
    """Loss of a sample: cross-entropy of its hidden codes and, while the tokenizer trains, the tokenizer's own terms.

    Shapes: T codes an image, row by row; N codes in the codebook; D the transformer's width. No buffer, no batch statistics, no
    moving average. `prepare_unlearning` freezes the tokenizer, so that ascent attacks the generator: a tokenizer trained here
    depends on the forget images, and keeps what it learned from them until it is trained anew without them.
    """

    gives_both = True

    def __init__(self, config: Config, tokenizer: Any, transformer: Any) -> None:
        super().__init__()
        self.image_size, self.channels, self.config = config.image_size, config.channels, config
        self.tokenizer, self.transformer, self.trains_tokenizer = tokenizer, transformer, config.train_tokenizer
        self.codebook = int(tokenizer.config["num_vq_embeddings"])
        self.cell = 2 ** (len(tokenizer.config["block_out_channels"]) - 1)
        # Given at each call: buffers would be saved by engines and left empty on device meta.
        embeddings = transformer.roberta_prelayernorm.embeddings
        embeddings.position_ids = embeddings.token_type_ids = None
        transformer.lm_head.bias.requires_grad_(False)  # unused: the decoder has its own where it is not tied
        tokenizer.requires_grad_(config.train_tokenizer)
        if config.activation_checkpointing:
            tokenizer._supports_gradient_checkpointing = True  # encoder and decoder do; only the class does not say so
            tokenizer.enable_gradient_checkpointing()
            switch = getattr(transformer, "activation_checkpointing_enable", None) or transformer.gradient_checkpointing_enable
            switch({"use_reentrant": False})

    def admit(self, region_B1HW: Tensor) -> None:
        """Refuses a region that touches every code."""
        self._touched(region_B1HW)

    def _touched(self, region_B1HW: Tensor, *, refuse: bool = True) -> Tensor:
        """The codes that the region touches, bool [B, T]."""
        touched = functional.max_pool2d(region_B1HW.float(), self.cell).flatten(1) > 0
        if refuse and touched.all(1).any():
            cure = "hide less, or take model autoencoder or inpainting for tasks that judge the whole image"
            raise ConfigError(f"model vqgan: the region touches all {touched.shape[1]} codes: none is left to start from", cure)
        return touched

    def _table(self) -> Tensor:
        """The codebook's vectors [N, latent], through the module's forward, so that ZeRO 3 gathers them."""
        embedding: nn.Embedding = self.tokenizer.quantize.embedding
        return embedding(torch.arange(self.codebook, device=embedding.weight.device))

    def _latents(self, images_BCHW: Tensor, *, moves: bool) -> Tensor:
        """Latents before quantisation, [B, T, latent]; with a gradient where the tokenizer moves."""
        pixels = (images_BCHW * 2 - 1).to(self.tokenizer.quant_conv.weight.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and moves):
            latents: Tensor = self.tokenizer.quant_conv(self.tokenizer.encoder(pixels))
        return latents.flatten(2).transpose(1, 2)

    def _pixels(self, vectors_BTE: Tensor) -> Tensor:
        """Images of code vectors, fp32 [B, C, H, W] in about [0, 1]."""
        side = self.image_size // self.cell
        grid = vectors_BTE.transpose(1, 2).unflatten(2, (side, side)).to(self.tokenizer.quant_conv.weight.dtype)
        return (self.tokenizer.decoder(self.tokenizer.post_quant_conv(grid)).float() + 1) / 2

    @torch.no_grad()
    def _gaps(self, latents_BTE: Tensor, table_NE: Tensor) -> Tensor:
        """Euclidean distance of each latent from each code, fp32 [B, T, N], whatever the precision around it."""
        with torch.autocast(latents_BTE.device.type, enabled=False):
            return torch.cdist(latents_BTE.float(), table_NE.float().expand(len(latents_BTE), -1, -1))

    def _tokenizer_loss(self, target_BCHW: Tensor, latents_BTE: Tensor, table_NE: Tensor, gaps_BTN: Tensor) -> Tensor:
        """Equation 3 of VQ-VAE, and each code's squared distance to the sample's nearest latent, fp32 [B]."""
        latents, table, weight = latents_BTE.float(), table_NE.float(), self.config
        codes, nearest = table[gaps_BTN.argmin(2)], latents.detach().take_along_dim(gaps_BTN.argmin(1)[:, :, None], dim=1)
        rebuilt = self._pixels(latents + (codes - latents).detach())
        terms = [(1.0, rebuilt, target_BCHW), (1.0, codes, latents.detach()), (weight.commitment, latents, codes.detach())]
        terms.append((weight.spread, table.expand_as(nearest), nearest))
        return torch.stack([factor * (one - other).square().flatten(1).mean(1) for factor, one, other in terms]).sum(0)

    def _hidden(self, touched_BT: Tensor, draws_B: Tensor) -> Tensor:
        """The codes that training hides, bool [B, T], at least one: MaskGIT's cosine, or MAGE's truncated normal ratio."""
        place, scores = uniform(draws_B, 1, purpose=20)[:, 0], uniform(draws_B, touched_BT.shape[1], purpose=21)
        if self.config.mask == "task":
            share, among = torch.cos(math.pi / 2 * place), touched_BT
        else:
            low, high = (0.5 * (1 + math.erf((edge - 0.55) / 0.25 / math.sqrt(2))) for edge in (0.5, 1.0))
            inside = (2 * (low + (high - low) * place) - 1).clamp(-1 + 1e-6, 1 - 1e-6)
            share, among = 0.55 + 0.25 * math.sqrt(2) * torch.erfinv(inside), torch.ones_like(touched_BT)
        count = torch.ceil(share * among.sum(1)).clamp(min=1)
        return _lowest(scores.masked_fill(~among, math.inf), count) & among

    def judged(self, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """See `ImageModel.judged`; the cells of the codes that training hides."""
        hidden = self._hidden(self._touched(region_B1HW, refuse=False), draws_B)
        side = self.image_size // self.cell
        return hidden.view(-1, 1, side, side).repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)

    def _states(self, tokens_BT: Tensor, touched_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D]; a code inside the region is of type 1, any other of type 0."""
        given = {"position_ids": torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)}
        return self.transformer.roberta_prelayernorm(tokens_BT, token_type_ids=touched_BT.long(), **given).last_hidden_state

    def _scores(self, states_BTD: Tensor) -> Tensor:
        """Log-probabilities of the codes, fp32 [B, T, N]; the mask token is none of them."""
        return self.transformer.lm_head(states_BTD)[..., : self.codebook].float().log_softmax(-1)

    def forward(
        self, visible_BCHW: Tensor, target_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor, want: Want = "loss"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Loss [B] in nats; last hidden states [B, T, D] as features; log-probabilities [B, T, N] as prediction. All fp32.

        What is not hidden is shown: inside the region the true image's codes, outside it the visible image's. ConfigError where
        the region touches every code."""
        touched, table = self._touched(region_B1HW), self._table()
        seen = self._gaps(self._latents(visible_BCHW, moves=False), table).argmin(2)
        latents = self._latents(target_BCHW, moves=self.trains_tokenizer and want in ("loss", "both"))
        gaps = self._gaps(latents, table)
        true, hidden = gaps.argmin(2), self._hidden(touched, draws_B)
        states = self._states(torch.where(touched, true, seen).masked_fill(hidden, self.codebook), touched)
        if want == "features":
            return states.float()
        scores = self._scores(states)
        if want == "prediction":
            return scores
        loss = (-scores.take_along_dim(true[:, :, None], dim=2)[:, :, 0] * hidden).sum(1) / hidden.sum(1)
        loss = loss + self._tokenizer_loss(target_BCHW, latents, table, gaps) if self.trains_tokenizer else loss
        return (loss, scores) if want == "both" else loss

    @torch.no_grad()
    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """The region filled in by iterative decoding; ConfigError as in `forward`. Each of R rounds fills all unknown codes and
        takes back the least sure, so that cos(pi/2 t/R) of them stay unknown (MaskGIT, algorithm 1)."""
        touched, table, rounds = self._touched(region_B1HW), self._table(), self.config.decode_steps
        tokens = self._gaps(self._latents(visible_BCHW, moves=False), table).argmin(2)
        unknown, heat = touched, self.config.temperature
        for step in range(1, rounds + 1):
            scores = self._scores(self._states(tokens.masked_fill(unknown, self.codebook), touched))
            noisy = scores + _gumbel(draws_B, scores[0].numel(), 30 + 2 * step).view_as(scores) if heat else scores
            tokens = torch.where(unknown, noisy.argmax(2), tokens)
            sure = scores.take_along_dim(tokens[:, :, None], dim=2)[:, :, 0]
            sure = sure + heat * (1 - step / rounds) * _gumbel(draws_B, sure.shape[1], 31 + 2 * step) if heat else sure
            left = torch.floor(touched.sum(1) * math.cos(math.pi / 2 * step / rounds))
            unknown = _lowest(sure.masked_fill(~unknown, math.inf), torch.minimum(left, unknown.sum(1) - 1))
        return paste(self._pixels(table[tokens]).clamp(0, 1), visible_BCHW, region_B1HW)

    def distance(self, prediction: Tensor, other: Tensor, region_B1HW: Tensor) -> Tensor:
        """Kullback-Leibler divergence of `prediction` from `other`: mean over the region's codes, fp32 [B] >= 0, in nats."""
        touched = self._touched(region_B1HW, refuse=False)
        mine, theirs = prediction.float().log_softmax(-1), other.float().log_softmax(-1)
        each = functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1).clamp(min=0)
        return (each * touched).sum(1) / touched.sum(1)

    def random_prediction(self, prediction: Tensor, draws_B: Tensor) -> Tensor:
        """Log-probabilities of random codes, each named with a probability of 0.999 (the peers' noisy labels)."""
        _, places, num = prediction.shape
        codes = (uniform(draws_B, places, purpose=91) * num).long().clamp(max=num - 1)
        sure, rest = math.log(0.999), math.log(0.001 / (num - 1))
        return torch.where(functional.one_hot(codes, num).bool(), sure, rest).to(prediction.dtype)

    def encoder(self) -> tuple[nn.Module, ...]:
        """The transformer without its head."""
        return (self.transformer.roberta_prelayernorm,)

    def bottleneck(self) -> tuple[nn.Module, ...]:
        """The first half of the transformer's layers: embeddings and head stay, and are soon of use to new layers."""
        layers = self.transformer.roberta_prelayernorm.encoder.layer
        return tuple(layers[: max(1, len(layers) // 2)])

    def reset(self, module: nn.Module) -> None:
        """Weights N(0, 0.02), biases 0, norms 1, as the library initialises them."""
        std = self.transformer.config.initializer_range
        for name, weight in module.named_parameters():
            dense = weight.ndim > 1
            nn.init.normal_(weight, std=std) if dense else nn.init.constant_(weight, float(name.endswith("weight")))

    def prepare_unlearning(self) -> None:
        """Freeze the tokenizer; from here on the loss is the cross-entropy alone."""
        self.trains_tokenizer = False
        self.tokenizer.requires_grad_(False)

    def export(self, folder: Path) -> bool:
        """Write `tokenizer/` and `transformer/` below `folder`; what `Config.folder` reads."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.transformer.save_pretrained(folder / "transformer")
        return True


def _lowest(values_BT: Tensor, count_B: Tensor) -> Tensor:
    """The `count` lowest values of each row, bool [B, T]; of equal ones the first."""
    return values_BT.argsort(dim=1, stable=True).argsort(dim=1) < count_B[:, None]


def _gumbel(draws_B: Tensor, num: int, purpose: int) -> Tensor:
    """Standard Gumbel noise, fp32 [B, num]."""
    return -torch.log(-torch.log(uniform(draws_B, num, purpose).clamp(2.0**-25, 1 - 2.0**-24)))


def _read(folder: Path, part: str, kind: str, make: Callable[[dict[str, Any]], nn.Module]) -> Any:
    """A part of a local folder: its config.json, and its one safetensors file unless the default device is meta."""
    file, sizes = folder / part / FILES[part], folder / part / "config.json"
    cure = "name a folder that `export` wrote; pickles are not read"
    if not (file.is_file() and sizes.is_file()):
        raise ConfigError(f"model.folder: '{file.parent}' lacks config.json or {file.name}", cure)
    try:
        found = json.loads(sizes.read_text(encoding="utf-8"))
        if found.get("_class_name", found.get("model_type")) != kind:
            raise ConfigError(f"model.folder: '{sizes}' is not of a {kind}", cure)
        module = make(found)
        if not next(module.parameters()).is_meta:
            module.load_state_dict(safetensors.torch.load_file(file))
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError) as fault:
        raise CheckpointError(f"model.folder: '{file}' does not load as {kind}: {fault}", cure) from None
    return module


def _fresh(config: Config) -> tuple[VQModel, RobertaPreLayerNormForMaskedLM]:
    levels, places = len(config.block_out_channels), (config.image_size >> (len(config.block_out_channels) - 1)) ** 2
    library: Any = {"in_channels": config.channels, "out_channels": config.channels, "sample_size": config.image_size}
    library |= {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    library |= {"num_vq_embeddings": config.codebook, "norm_num_groups": math.gcd(128, *config.block_out_channels) // 4 or 1}
    library |= {name: getattr(config, name) for name in ("block_out_channels", "layers_per_block", "latent_channels")}
    tokenizer = VQModel(**library)
    # The library's U(-1/N, 1/N) puts all codes in one spot, of which training then uses a few.
    weight, steps = tokenizer.quantize.embedding.weight, round(config.codebook ** (1 / config.latent_channels))
    nn.init.normal_(weight, std=0.3)
    if steps > 1 and steps**config.latent_channels == config.codebook and not weight.is_meta:
        axes = [torch.linspace(-0.5, 0.5, steps)] * config.latent_channels
        weight.data.copy_(torch.cartesian_prod(*axes).view_as(weight))
    sizes: Any = {"vocab_size": config.codebook + 1, "max_position_embeddings": places, "type_vocab_size": 2}
    sizes |= {"hidden_size": config.width, "intermediate_size": 4 * config.width}
    sizes |= {"num_hidden_layers": config.layers, "num_attention_heads": config.heads, "tie_word_embeddings": False}
    return tokenizer, _roberta(sizes | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")))


def _roberta(sizes: dict[str, Any]) -> RobertaPreLayerNormForMaskedLM:
    fixed = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # dropout is no function of the draws
    return RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**(sizes | fixed)))


def build(config: Config) -> VQGAN:
    """Build with random weights from torch's current generator, or with those of `folder`; on device meta without weights.
    ConfigError for sizes or a folder that cannot work, CheckpointError for weights that do not fit or cannot be read."""
    if config.folder:
        tokenizer = _read(Path(config.folder), "tokenizer", "VQModel", VQModel.from_config)
        transformer = _read(Path(config.folder), "transformer", "roberta-prelayernorm", _roberta)
    elif not config.train_tokenizer:
        raise ConfigError("model.train_tokenizer: false needs a trained tokenizer", "name a folder")
    elif config.width % config.heads:
        raise ConfigError(f"model.width: {config.width} is not a multiple of {config.heads} heads", "write e.g. 128 and 4")
    else:
        tokenizer, transformer = _fresh(config)
    library, sizes = tokenizer.config, transformer.config
    cell, codes = 2 ** (len(library["block_out_channels"]) - 1), library["num_vq_embeddings"]
    places, wanted = (config.image_size // cell) ** 2, (codes + 1, 2, False)
    same = (sizes.vocab_size, sizes.type_vocab_size, sizes.tie_word_embeddings) == wanted
    for wrong, what, cure in (
        (config.image_size % cell or places < 4, f"image_size: not two or more cells of {cell} pixels", "write e.g. 32"),
        (library["in_channels"] != config.channels, "folder: a tokenizer of another number of channels", "correct channels"),
        (library["norm_type"] != "group", "folder: a tokenizer with spatial norms", "name one with norm_type: group"),
        (not same, f"folder: no transformer of {codes} codes, a mask and two types", "name parts that belong together"),
        (sizes.max_position_embeddings != places, f"folder: no transformer of {places} places", "correct image_size"),
    ):
        if wrong:
            raise ConfigError(f"model.{what}", cure)
    return VQGAN(config, tokenizer, transformer)
