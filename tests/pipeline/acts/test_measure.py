"""Facts of every model and method: traced, complete, and in keeping with what the phases do."""

from __future__ import annotations

import functools
import time

import pytest

from pipeline import component
from pipeline.acts.measure import resident_bytes, run
from pipeline.config import resolve
from pipeline.orders import Linear, MeasureAnswer, MeasureOrder

MODELS = {"autoencoder": "autoencoder", "mae": "mae_small", "vqgan": "vqgan_small", "inpainting": "inpainting_small"}

SMALLER = {
    "autoencoder": (),
    "mae_small": ("model.layers=1", "model.decoder_layers=1"),
    "vqgan_small": ("model.block_out_channels=[16,32]", "model.layers=2", "model.decode_steps=2"),
    "inpainting_small": ("model.block_out_channels=[16,32]", "model.sample_steps=2"),
}
"""A trace takes as long as a model has layers, whatever their sizes."""


@functools.cache
def measured(*overrides: str, groups: tuple[str, ...] = ("class",), gpu: bool = False) -> MeasureAnswer:
    return run(MeasureOrder(config=resolve("demo", list(overrides)), groups=groups, gpu=gpu, started=time.time()))


def test_every_model_has_its_small_size_here() -> None:
    assert set(component.names("model")) == set(MODELS)


@pytest.mark.parametrize("model", MODELS.values())
def test_every_model_is_traced_through_all_phases(model: str) -> None:
    answer = measured(f"model={model}", *SMALLER[model])
    facts = {item.phase: item for item in answer.phases}
    assert list(facts) == ["train", "calibrate", "forget", "retain"]
    train = facts["train"]
    # A training pass is about three forward passes; parameters do most of the work, some of them many times an image.
    assert 2.0 < train.flop.each / answer.forward_flop < 4.0
    assert train.flop.each > train.trained
    assert train.activations.each > answer.forward_bytes.each > 0
    assert (train.companions, train.calls, train.quiet_calls) == (0, 1, 0)
    # Phase 2 asks the original and a shadow: two models more and their forward passes, beside one for retained and forget images.
    retain = facts["retain"]
    assert (retain.companions, retain.calls, retain.quiet_calls) == (2, 1, 2)
    assert retain.share == 0.042
    assert retain.reads == ("retain", "forget")
    assert retain.flop.each > facts["forget"].flop.each
    assert answer.complete_flop >= answer.forward_flop / 3
    assert answer.process_bytes > 0
    assert answer.start_seconds > 0


def test_attention_in_fp32_is_counted_for_processors_alone() -> None:
    """They widen what it reads, keep it until the backward pass, and do as many FLOP."""
    small = ("model=mae_small", *SMALLER["mae_small"], "engine.precision=bf16")
    here, there = (measured(*small, gpu=gpu) for gpu in (False, True))
    for ours, theirs in zip(here.phases, there.phases, strict=True):
        assert ours.flop == theirs.flop
        assert ours.activations.each > theirs.activations.each
    plain = ("model=mae_small", *SMALLER["mae_small"])
    assert measured(*plain).phases == measured(*plain, gpu=True).phases


def test_a_tokenizer_that_stays_is_not_trained_by_unlearning() -> None:
    facts = {item.phase: item for item in measured("model=vqgan_small", *SMALLER["vqgan_small"]).phases}
    assert facts["train"].trained > facts["forget"].trained == facts["retain"].trained == facts["calibrate"].trained


@pytest.mark.parametrize("method", component.names("method"))
def test_every_method_is_traced(method: str) -> None:
    answer = measured(f"method={method}", groups=("class", "images"))
    facts = {item.phase: item for item in answer.phases}
    section = resolve("demo", [f"method={method}"]).method
    assert {"forget", "retain"} & set(facts) == {name for name in ("forget", "retain") if section.get(name) is not None}
    assert bool(answer.calibration) == (section.get("calibration") is not None)
    teaching = dict.fromkeys(("scrub", "li_et_al", "random_encoder", "retain_label", "eps_constrained"), 1) | {"decouple": 2}
    assert max(item.companions for item in answer.phases) == teaching.get(method, 0)


def test_single_images_need_no_shadow() -> None:
    facts = {item.phase: item for item in measured(groups=("images",)).phases}
    assert "calibrate" not in facts
    assert facts["retain"].companions == 1, "the original"
    without = {item.phase: item for item in measured("method.retain.distillation=0", groups=("images",)).phases}["retain"]
    assert (without.companions, without.share) == (0, 0.075)
    assert measured(groups=("images",)).calibration["shadow_share"] == 0.0


def test_precision_and_recomputation_change_memory_and_flop() -> None:
    plain, low, again = (
        measured("model=mae_small", "model.layers=2", "model.decoder_layers=1", "method=finetune", *more).phases[0]
        for more in ([], ["engine.precision=bf16"], ["model.activation_checkpointing=true"])
    )
    assert 0.4 < low.activations.each / plain.activations.each < 0.7
    assert low.flop.each == plain.flop.each
    assert again.activations.each < 0.8 * plain.activations.each
    assert 1.1 < again.flop.each / plain.flop.each < 1.4


def test_lines_and_resident_bytes() -> None:
    assert Linear(fixed=2.0, each=3.0).at(4) == 14.0
    assert 0 < resident_bytes("VmRSS") <= resident_bytes("VmHWM")
    assert resident_bytes("VmNothing") == 0
