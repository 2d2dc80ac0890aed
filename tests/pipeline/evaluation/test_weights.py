import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.evaluation.weights import fill, read_tensors


def test_both_formats_give_the_same_tensors(tmp_path):
    tensors = {"a": torch.arange(3.0)}
    torch.save(tensors, tmp_path / "w.pth")
    save_file(tensors, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert read_tensors(str(tmp_path / name))["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"a": 3}, [torch.ones(1)]])
def test_code_and_other_things_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        read_tensors(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_broken_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_tensors(str(tmp_path / name))


def test_weights_fit_whole_or_not_at_all():
    network = nn.BatchNorm1d(2)
    state = network.state_dict()
    fill(network, {name: value for name, value in state.items() if name != "num_batches_tracked"}, "x")
    for wrong in ({}, {**state, "more": torch.ones(1)}, {**state, "weight": torch.ones(3)}):
        with pytest.raises(CheckpointError, match="x: "):
            fill(network, wrong, "x")
