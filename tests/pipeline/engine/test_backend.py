"""ZeRO 0 to 3, fp32 and bf16: the same steps, exact resume, no pickled objects at load."""

from __future__ import annotations

import glob
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig, _refuse_what_cannot_compile, quiet_deepspeed
from pipeline.engine.checkpoint import Checkpoints, Files, TrainState
from pipeline.engine.distributed import group
from pipeline.errors import CheckpointError, ConfigError, StorageError
from pipeline.models.autoencoder import Config, build
from tests.support.disks import small_disk
from tests.support.distributed import run_distributed
from tests.support.taking import taken_by


def _steps(backend: Backend, first: int, count: int) -> None:
    ranks = group()
    for step in range(first, first + count):
        images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        share = 6 // ranks.world_size
        mine = images[ranks.rank * share : (ranks.rank + 1) * share].to(ranks.device)
        region = torch.zeros(share, 1, 8, 8, dtype=torch.bool, device=ranks.device)
        region[:, :, 2:6, 2:6] = True
        losses = backend.model(mine.masked_fill(region, 0.5), mine, region, torch.zeros(len(mine), dtype=torch.int64))
        assert not backend.backward(losses.sum() * ranks.world_size / 6)
        backend.step(step)


def _backend(stage: int, precision: str, seed: int = 0, *, compiled: bool = False, momentum: float = 0.9) -> Backend:
    torch.manual_seed(seed)
    model = build(Config(image_size=8, width=16, latent=16)).to(group().device)
    engine = EngineConfig(zero_stage=stage, precision=precision, compile=compiled)
    optimizer = OptimizerConfig(learning_rate=1e-2, steps=8, clip=0.5, momentum=momentum)
    return Backend(model, engine=engine, optimizer=optimizer, micro_batch=3, group=group())


def untouched() -> dict[str, tuple[dict, dict]]:
    found = {}
    for stage in (1, 2, 3):
        torch.manual_seed(0)
        given = build(Config(image_size=8, width=16, latent=16)).state_dict()
        backend = _backend(stage, "bf16")
        found[stage] = ({name: tensor.clone() for name, tensor in given.items()}, backend.weights())
        backend.close()
    return found


@pytest.mark.distributed
def test_master_weights_are_the_given_ones_not_their_bf16_rounding() -> None:
    for stage, (given, kept) in run_distributed(untouched, 2)[0].items():
        for name, tensor in given.items():
            assert torch.equal(tensor, kept[name]), f"stage {stage}: {name}"


def _written(write: Callable[[], Files], folder: str) -> str:
    """Write; the folder that is returned holds what this rank wrote for itself and what all share, as on a machine of its own."""
    files = write()
    shared = [path for rank in group().gather(list(files.shared)) for path in rank]
    mine = os.path.join(folder, f"only-{group().rank}")
    for path in (*files.own, *shared):
        os.makedirs(os.path.dirname(os.path.join(mine, path)), exist_ok=True)
        shutil.copy(os.path.join(folder, path), os.path.join(mine, path))
    return mine


def resume(folder: str) -> dict[str, tuple[dict, dict, dict]]:
    answers = {}
    for stage, precision in itertools.product((0, 1, 2, 3), ("fp32", "bf16", "autocast")):
        whole = _backend(stage, precision)
        _steps(whole, 0, 4)
        place = f"{folder}/{stage}{precision}"
        os.makedirs(place, exist_ok=True)
        write = whole.save(place, copy=True)
        _steps(whole, 4, 3)
        saved_in = _written(write, place)  # after the weights have moved on
        expected = whole.weights()
        whole.close()
        resumed = _backend(stage, precision, seed=1)
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            resumed.load(f"{folder}/absent")
        resumed.load(saved_in)
        saved = resumed.weights()
        _steps(resumed, 4, 3)
        answers[f"{stage}{precision}"] = (expected, resumed.weights(), saved)
        resumed.close()
    return answers


@pytest.mark.distributed
def test_every_stage_and_precision_resumes_bit_for_bit_and_agrees_with_the_others() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (answers, other) = run_distributed(resume, 2, folder)
    for name, (expected, resumed, saved) in answers.items():
        for key in expected:
            assert torch.equal(expected[key], resumed[key]), f"{name}: {key} after resume"
            assert torch.equal(expected[key], other[name][0][key]), f"{name}: {key} on the other rank"
        assert any(not torch.equal(expected[key], saved[key]) for key in expected), f"{name}: nothing moved"
    for stage in (1, 2, 3):
        for key, tensor in answers["0fp32"][0].items():
            assert torch.allclose(tensor, answers[f"{stage}fp32"][0][key], atol=1e-5), f"stage {stage}: {key}"
        for precision in ("bf16", "autocast"):
            other_stage = answers[f"{stage}{precision}"][0]
            drift = max(float((tensor - other_stage[key]).abs().max()) for key, tensor in answers[f"0{precision}"][0].items())
            assert drift < 0.05, f"stage {stage} {precision}"


def fill(folder: str) -> list[object]:
    """Save, fill the disk, save in the background and at once, make room, go on."""
    backend, filler, ranks = _backend(1, "fp32"), os.path.join(folder, "filler"), group()
    points = Checkpoints(folder, "phase", config_digest="a", group=ranks)
    points.save(backend, TrainState(step=1))
    if ranks.rank == 0:
        with open(filler, "wb") as stream:
            stream.write(bytes(max(0, shutil.disk_usage(folder).free - (32 << 10))))
    ranks.barrier()
    told: list[object] = []
    for wait in (False, True):
        try:
            points.save(backend, TrainState(step=2), wait=wait)
            _steps(backend, 1, 1)  # they go on meanwhile
            points.settle()
        except StorageError as fault:
            told.append(fault.message)
        found = points.read()
        told.append(found and found.state.step)
    ranks.barrier()
    if ranks.rank == 0:
        told.append(len(glob.glob(os.path.join(folder, "checkpoints", "phase", "step-*"))))
        os.unlink(filler)
    ranks.barrier()
    points.save(backend, TrainState(step=3))
    kept = {name: tensor.clone() for name, tensor in backend.weights().items()}
    _steps(backend, 3, 1)
    restored = points.restore(backend)
    told += [restored and restored.step, all(torch.equal(kept[name], new) for name, new in backend.weights().items())]
    backend.close()
    return told


@pytest.mark.distributed
def test_a_disk_that_is_full_is_named_on_all_ranks_and_the_older_checkpoint_stands(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096):
        first, second = run_distributed(fill, 2, str(tmp_path / "disk"))
    for told in (first, second):
        messages = [item for item in told if isinstance(item, str)]
        assert len(messages) == 2 and all("no space left" in message for message in messages), told
        assert [item for item in told if not isinstance(item, str)] == [1, 1, *([1] if told is first else []), 3, True]


def _compiled() -> list[dict[str, torch.Tensor]]:
    compile_module, made = torch.nn.Module.compile, []

    def traced(module: torch.nn.Module) -> None:
        made.append(module)
        compile_module(module, backend="eager")  # traces all, and spares a C++ compiler half a minute

    torch.nn.Module.compile = traced
    found = []
    for compiled in (False, True):
        backend = _backend(2, "fp32", compiled=compiled)
        _steps(backend, 0, 2)
        found.append(backend.weights())
        backend.close()
    assert len(made) == 1
    return found


@pytest.mark.distributed
@pytest.mark.skipif(" " in torch.__file__ or shutil.which("c++") is None, reason="refused here, by name")
def test_a_compiled_model_takes_the_same_steps() -> None:
    (plain, compiled) = run_distributed(_compiled, 1)[0]
    for key in plain:
        assert torch.allclose(plain[key], compiled[key], atol=1e-4), key


@pytest.mark.parametrize(
    ("place", "compiler", "words"), [("/a b/torch/x.py", "/usr/bin/c++", "space"), ("/ab/x.py", None, r"no C\+\+")]
)
def test_compilation_that_cannot_work_is_refused_by_name(
    place: str, compiler: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    monkeypatch.setattr(torch, "__file__", place)
    with pytest.raises(ConfigError, match=words):
        _refuse_what_cannot_compile(torch.device("cpu"))
    _refuse_what_cannot_compile(torch.device("cuda"))


def _alone(_: str) -> dict[str, torch.Tensor]:
    backend = _backend(0, "fp32")
    _steps(backend, 0, 5)
    weights = backend.weights()
    backend.close()
    return weights


@pytest.mark.distributed
def test_result_does_not_depend_on_the_number_of_ranks() -> None:
    one, two = run_distributed(_alone, 1, "")[0], run_distributed(_alone, 2, "")[0]
    for key in one:
        assert torch.allclose(one[key], two[key], atol=2e-4), key


def _taken_by_a_step(stage: int) -> tuple[int, int]:
    """Bytes that a second step takes beside what is held, at most; and bytes of the weights."""
    backend = _backend(stage, "fp32")
    _steps(backend, 0, 1)
    for parameters in backend.engine.optimizer.param_groups:
        parameters["fused"] = None  # as a checkpoint from a GPU says
    images, region = torch.rand(3, 1, 8, 8), torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    backend.backward(backend.model(images, images, ~region, torch.zeros(3, dtype=torch.int64)).sum())
    return taken_by(lambda: backend.step(1)), 4 * sum(weight.numel() for weight in backend.model.parameters())


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_of_adamw_on_a_cpu_has_no_temporaries(stage: int) -> None:
    for taken, weights in run_distributed(_taken_by_a_step, 2, stage):
        assert taken < 0.1 * weights, f"{taken} bytes of {weights}"


def _with_momentum(momentum: float) -> tuple[dict, dict]:
    """Weights after four steps of the engine, and of AdamW written out over the same gradients."""
    backend = _backend(1, "fp32", momentum=momentum)
    torch.manual_seed(0)
    model = build(Config(image_size=8, width=16, latent=16))
    means = [torch.zeros_like(weight) for weight in model.parameters()]
    squares = [torch.zeros_like(weight) for weight in model.parameters()]
    for step in range(4):
        images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        region = torch.zeros(6, 1, 8, 8, dtype=torch.bool)
        region[:, :, 2:6, 2:6] = True
        model(images.masked_fill(region, 0.5), images, region, torch.zeros(6, dtype=torch.int64)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        rate = OptimizerConfig(learning_rate=1e-2, steps=8).rate(step)
        with torch.no_grad():
            for weight, mean, square in zip(model.parameters(), means, squares, strict=True):
                mean.lerp_(weight.grad, 1 - momentum)
                square.mul_(0.95).addcmul_(weight.grad, weight.grad, value=0.05)
                corrected = mean / (1 - momentum ** (step + 1))
                weight.sub_(rate * corrected / ((square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
        model.zero_grad()
    _steps(backend, 0, 4)
    found = backend.weights()
    backend.close()
    return found, model.state_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_momentum_is_the_beta_1_of_adamw(momentum: float) -> None:
    for found, expected in run_distributed(_with_momentum, 2, momentum):
        for name, weights in expected.items():
            assert torch.allclose(found[name], weights, atol=2e-4), name


def test_rate_rises_then_falls_to_nothing() -> None:
    optimizer = OptimizerConfig(learning_rate=2.0, steps=100, warmup_steps=10)
    rates = [optimizer.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) <= 2.0
    assert rates[99] < 0.01
    assert all(math.isclose(OptimizerConfig(learning_rate=1.0, steps=5, decay=False).rate(step), 1.0) for step in range(5))


@pytest.mark.parametrize(
    ("wanted", "compiler", "words"), [(False, "/usr/bin/c++", "jit_ops is off"), (True, None, "no C++ compiler")]
)
def test_the_just_in_time_op_is_off_unless_wanted_and_possible(
    wanted: bool, compiler: str | None, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    with caplog.at_level("INFO", logger="unlearn"):
        deepspeed = quiet_deepspeed(EngineConfig(jit_ops=wanted))
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    assert words in caplog.text
