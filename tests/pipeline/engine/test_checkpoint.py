"""Checkpoints appear whole, weights load strictly, every changed byte is found."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.engine.checkpoint import Checkpoints, TrainState, load_weights, save_weights
from pipeline.errors import CheckpointError, IntegrityError, StorageError


class Fake:
    """Saves a text; can be told to fail half-way."""

    def __init__(self, text: str = "", fail: bool = False) -> None:
        self.text, self.fail = text, fail

    def save(self, folder: str) -> None:
        Path(folder, "state.bin").write_text(self.text)
        if self.fail:
            raise OSError("killed here")

    def load(self, folder: str) -> None:
        self.text = Path(folder, "state.bin").read_text()


def alone(rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, world_size=world_size, barrier=lambda: None)


def checkpoints(folder: Path, digest: str = "a", world_size: int = 1) -> Checkpoints:
    return Checkpoints(str(folder), "phase", config_digest=digest, group=alone(world_size=world_size))


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    state = TrainState(step=3, seen=(7,), digests=("0f",), measures={"loss": 0.5})
    checkpoints(tmp_path).save(Fake("three"), state)
    with pytest.raises(OSError, match="killed"):
        checkpoints(tmp_path).save(Fake("six", fail=True), TrainState(step=6))
    restored = Fake()
    assert checkpoints(tmp_path).restore(restored) == state
    assert restored.text == "three"


def test_another_configuration_or_world_size_starts_anew(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(Fake("x"), TrainState(step=1))
    assert checkpoints(tmp_path, digest="b").restore(Fake()) is None
    assert checkpoints(tmp_path, world_size=2).read() is None


def test_a_changed_byte_is_named_and_clear_removes_all(tmp_path: Path) -> None:
    points = checkpoints(tmp_path)
    points.save(Fake("right"), TrainState(step=1))
    file = tmp_path / "checkpoints" / "phase" / "last" / "state.bin"
    file.write_text("wrong")
    with pytest.raises(IntegrityError, match=r"state\.bin"):
        points.restore(Fake())
    points.clear()
    assert points.read() is None
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]


def test_weights_round_trip_and_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    uri = tmp_path / save_weights(model.state_dict(), str(tmp_path), "one")
    backwards = dict(reversed(list(model.state_dict().items())))
    assert uri.read_bytes() == (tmp_path / save_weights(backwards, str(tmp_path), "two")).read_bytes()
    load_weights(other, str(uri))
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"not safetensors", CheckpointError, "not a safetensors file"),
        (safetensors.torch.save({"weight": torch.zeros(2, 3)}), CheckpointError, "missing bias"),
        (safetensors.torch.save({"weight": torch.zeros(5, 3), "bias": torch.zeros(2)}), CheckpointError, r"shape \[5, 3\]"),
        (safetensors.torch.save({"weight": torch.ones(2, 3) / 0, "bias": torch.zeros(2)}), CheckpointError, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: bytes, error: type[Exception], words: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    with pytest.raises(error, match=words):
        load_weights(nn.Linear(3, 2), str(file))


def test_a_missing_or_changed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not found"):
        load_weights(nn.Linear(3, 2), str(tmp_path / "absent.safetensors"))
    file = tmp_path / "w.safetensors"
    file.write_bytes(safetensors.torch.save(nn.Linear(3, 2).state_dict()))
    with pytest.raises(IntegrityError, match="not the weights"):
        load_weights(nn.Linear(3, 2), str(file), "0" * 64)
