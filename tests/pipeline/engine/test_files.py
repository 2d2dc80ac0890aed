"""Loading takes plain data and nothing that could run code, whatever the caller asks for."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import EngineConfig
from pipeline.engine.backend import quiet_deepspeed
from pipeline.engine.files import FORBID, FORCE, Copies, plain_loading, whole_files
from pipeline.errors import CheckpointError, StorageError
from tests.support.disks import small_disk


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


def test_a_file_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path: Path) -> None:
    quiet_deepspeed(EngineConfig())
    file, mark = tmp_path / "state.pt", tmp_path / "mark"
    torch.save({"module": torch.ones(2), "extra": Malicious(mark)}, file)
    with pytest.raises(CheckpointError, match=r"step: holds eval, which is not plain data"):
        with plain_loading("step"):
            torch.load(file, weights_only=False)
    assert not mark.exists()


def test_deepspeed_s_own_plain_classes_pass_and_what_was_set_before_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_deepspeed(EngineConfig())
    from deepspeed.utils.tensor_fragment import fragment_address

    monkeypatch.setenv(FORBID, "1")
    monkeypatch.delenv(FORCE, raising=False)
    file = tmp_path / "state.pt"
    torch.save(fragment_address(start=3, numel=4), file)
    before = set(torch.serialization.get_safe_globals())
    with plain_loading("outer"):
        with plain_loading("inner"):
            assert os.environ[FORCE] == "1" and FORBID not in os.environ
        assert torch.load(file, weights_only=False).start == 3
    assert os.environ[FORBID] == "1" and FORCE not in os.environ
    assert set(torch.serialization.get_safe_globals()) == before


def test_of_views_alone_a_copy_is_made_where_only_those_are_asked_for() -> None:
    whole, zeros = torch.arange(1000.0), torch.zeros(()).expand(500)
    held = Copies().of({"whole": whole, "seen": whole.view(10, 100), "part": whole[10:13], "zeros": zeros}, views=True)
    assert held["whole"] is whole and held["seen"].data_ptr() == whole.data_ptr() and held["zeros"] is zeros
    assert held["part"].tolist() == [10.0, 11.0, 12.0] and held["part"].untyped_storage().nbytes() == 12


def test_a_copy_stands_still_keeps_what_was_one_as_one_and_brings_no_more_than_its_own_elements() -> None:
    whole = torch.arange(1000.0)
    part, moving = whole[10:13], torch.ones(2, requires_grad=True)
    state = {"part": part, "again": [part, (moving, "x")], "loss": {"scale": [1]}, "none": torch.empty(0)}
    copies = Copies()
    held = copies.of(state)
    whole.add_(1)
    with torch.no_grad():
        moving.mul_(5)
    state["loss"]["scale"].append(2)
    assert held["part"].tolist() == [10.0, 11.0, 12.0] and held["part"] is held["again"][0]
    assert held["part"].untyped_storage().nbytes() == 12
    assert held["again"][1][0].tolist() == [1.0, 1.0] and not held["again"][1][0].requires_grad
    assert held["again"][1][1] == "x" and held["loss"] == {"scale": [1]} and held["none"].numel() == 0
    place = held["part"].data_ptr()
    assert copies.of(state)["part"].data_ptr() != place, "the first copy is still needed"
    copies.give_back()
    again = [copies.of(state)["part"] for _ in range(2)]
    many = copies.of({"moment": torch.zeros(()).expand(1000, 50)})["moment"]
    assert many.shape == (1000, 50) and not many.any() and many.untyped_storage().nbytes() == 4
    assert place in {tensor.data_ptr() for tensor in again} and all(tensor.tolist() == [11.0, 12.0, 13.0] for tensor in again)


@pytest.mark.parametrize("to_path", [True, False])
def test_a_full_disk_is_told_as_one(tmp_path: Path, to_path: bool) -> None:
    with small_disk(tmp_path / "disk", 2048):
        folder = tmp_path / "disk"
        with pytest.raises(StorageError, match="no space left"), whole_files(str(folder)), contextlib.ExitStack() as stack:
            place = folder / "state.pt"
            torch.save(torch.ones(1 << 20), place if to_path else stack.enter_context(place.open("wb")))


def test_a_disk_that_is_full_wherever_in_the_file_is_told_as_one(tmp_path: Path) -> None:
    told = []
    with small_disk(tmp_path / "disk", 256):
        place = tmp_path / "disk" / "state.pt"
        for numbers in range(64_000, 66_500, 50):  # the last bytes of one of them wait in a buffer of the writer
            try:
                with whole_files(str(tmp_path / "disk")):
                    torch.save(torch.ones(numbers), str(place))
                told.append("")
            except StorageError as fault:
                told.append(fault.message)
            place.unlink(missing_ok=True)
    assert told[0] == "" and all("no space left" in words for words in told[told.index(told[-1]) :])


def test_other_faults_of_writing_keep_their_words_and_bugs_stay_bugs(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"not written: .*Input/output error"), whole_files(str(tmp_path)):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(RuntimeError, match="a bug"), whole_files(str(tmp_path)):
        raise RuntimeError("a bug of ours")
