"""Checkpoints appear whole, on a disk and in a bucket, at any number of ranks; every changed byte is found; weights load
strictly. Ranks are threads here."""

from __future__ import annotations

import builtins
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline import storage
from pipeline.engine.checkpoint import Checkpoints, Files, TrainState, load_weights, save_weights
from pipeline.errors import CheckpointError, IntegrityError, Preempted, StorageError
from tests.pipeline.engine.test_agreement import Rank, together

ALONE = Rank(0, [None], threading.Barrier(1))
STATE = TrainState(step=3, seen=(7,), digests=("0f",), measures={"loss": 0.5})


class Shards:
    """A text that is split over the ranks, and one that they share; `save` can be told to fail half-way."""

    def __init__(self, group: Rank = ALONE, text: str = "", fail: bool = False) -> None:
        self.group, self.text, self.fail, self.converted = group, text, fail, ""
        self.wait: Callable[[], object] = lambda: None

    def save(self, folder: str, *, copy: bool) -> Callable[[], Files]:
        text = self.text

        def write() -> Files:
            own, first = f"shard-{self.group.rank:03d}", self.group.rank == 0
            Path(folder, own).write_text(f"{text}/{self.group.rank:03d}/" + "x" * 1000)
            if self.fail:
                raise OSError("killed here")
            self.wait()
            if first:
                Path(folder, "model").write_text(text)
            return Files([own], ["model"] if first else [])

        return write

    def load(self, folder: str) -> None:
        self.text, own = Path(folder, "model").read_text(), f"{self.group.rank:03d}"
        assert Path(folder, f"shard-{own}").read_text().split("/")[:2] == [self.text, own]

    def convert(self, folder: str, files: Sequence[str], target: str) -> None:
        texts = [Path(folder, file).read_text().split("/")[0] for file in sorted(files)]
        Path(target, "whole").write_text("+".join(texts))

    def load_converted(self, folder: str, target: str) -> None:
        self.converted = Path(target, "whole").read_text()
        self.text = self.converted.split("+")[0]


def checkpoints(folder: str | Path, group: Rank = ALONE, digest: str = "a", **named: Any) -> Checkpoints:
    return Checkpoints(str(folder), "phase", config_digest=digest, group=group, **named)


def files_below(folder: str | Path) -> list[str]:
    """Without hidden ones: locks, and temporary files of a process that was killed."""
    found = storage.list_files(str(folder)) if storage.exists(str(folder)) else []
    return sorted(name for name in (uri.rpartition("/")[2] for uri in found) if not name.startswith("."))


def step_folder(folder: Path) -> Path:
    (found,) = folder.glob("checkpoints/phase/step-*")
    return found


@pytest.fixture(params=["disk", "bucket"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"
    yield folder
    storage.remove_tree(folder)


def test_a_save_that_fails_leaves_the_older_checkpoint(run: str, tmp_path: Path) -> None:
    scratch = str(tmp_path / "scratch")
    checkpoints(run, scratch=scratch).save(Shards(text="three"), STATE)
    with pytest.raises(OSError, match="killed"):
        checkpoints(run, scratch=scratch).save(Shards(text="six", fail=True), TrainState(step=6))
    restored = Shards()
    assert checkpoints(run, scratch=scratch).restore(restored) == STATE
    assert restored.text == "three"


def test_in_the_background_the_older_checkpoint_stands_until_all_ranks_have_settled(run: str, tmp_path: Path) -> None:
    scratch, release = str(tmp_path / "scratch"), threading.Event()
    together(2, lambda group: checkpoints(run, group, scratch=scratch).save(Shards(group, "old"), STATE))

    def late(group: Rank) -> tuple[Any, ...]:
        points, backend = checkpoints(run, group, scratch=scratch), Shards(group, "new")
        assert points.restore(Shards(group)) == STATE
        backend.wait = (lambda: release.wait(20)) if group.rank else (lambda: None)
        points.save(backend, TrainState(step=9), wait=False)
        before, backend.text = points.read(), "moved on"
        if group.rank:
            assert not points.written
        group.barrier()
        release.set()
        points.settle()
        after, restored = points.read(), Shards(group)
        assert before is not None and after is not None and not points.pending and points.written
        return before.state.step, after.state.step, points.restore(restored) == TrainState(step=9), restored.text

    assert together(2, late) == [(3, 9, True, "new")] * 2
    assert files_below(run) == ["model", "shard-000", "shard-001", "state.json"]


def test_what_fails_in_the_background_is_raised_where_it_is_settled_and_leaves_the_older_one(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(Shards(text="three"), STATE)
    points = checkpoints(tmp_path)
    points.save(Shards(text="six", fail=True), TrainState(step=6), wait=False)
    for act in (points.settle, lambda: points.restore(Shards())):
        with pytest.raises(OSError, match="killed"):
            act()
        points.save(Shards(text="six", fail=True), TrainState(step=6), wait=False)
    points.clear()
    assert not files_below(tmp_path), "what is to be removed need not be whole"


class Killed(BaseException):
    """Ends a process, as far as a test can."""


class Power:
    """Lets `left` calls through; then it is off, and every call is the last."""

    def __init__(self, left: int) -> None:
        self.left = left

    def over(self, call: Any) -> Any:
        def limited(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return call(*arguments, **named)

        return limited


def killed_after(calls: int, act: Any) -> bool:
    """Run `act` with that many calls that change files, on this machine or in a store; whether it was cut short."""
    power = Power(calls)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir", "remove"):
            patch.setattr(os, name, power.over(getattr(os, name)))
        patch.setattr(builtins, "open", power.over(open))
        patch.setattr(storage, "_upload", power.over(storage._upload))
        patch.setattr(storage, "ask", power.over(storage.ask))
        try:
            act()
        except Killed:
            return True
    return False


def test_killed_at_any_moment_there_is_a_whole_checkpoint(run: str, tmp_path: Path) -> None:
    scratch = str(tmp_path / "scratch")
    checkpoints(run, scratch=scratch).save(Shards(text="0"), TrainState(step=0))
    step, calls, cut = 0, 0, 0
    while True:
        before = step

        def save_and_go_on(step: int = before) -> None:
            points, backend = checkpoints(run, scratch=scratch), Shards()
            assert points.restore(backend) is not None
            points.save(Shards(text=str(step + 1)), TrainState(step=step + 1))

        whole = not killed_after(calls, save_and_go_on)
        backend = Shards()
        state = checkpoints(run, scratch=scratch).restore(backend)
        assert state is not None and state.step in (before, before + 1) and backend.text == str(state.step)
        assert files_below(run) == ["model", "shard-000", "state.json"], "what the killed one left is swept"
        step, calls, cut = state.step, calls + 1, cut + (not whole)
        if whole:
            break
    assert step > 0 and cut > 10


@pytest.mark.parametrize("how", ["changed", "missing", "foreign", "shared"])
def test_a_file_that_is_not_the_saved_one_is_refused_on_all_ranks(tmp_path: Path, how: str) -> None:
    together(4, lambda group: checkpoints(tmp_path, group).save(Shards(group, "right"), STATE))
    shard = step_folder(tmp_path) / ("model" if how == "shared" else "shard-002")
    if how == "missing":
        shard.unlink()
    else:
        shard.write_bytes((shard.parent / "shard-001").read_bytes() if how == "foreign" else b"wrong")
    found = together(4, lambda group: checkpoints(tmp_path, group).restore(Shards(group)))
    assert [type(fault) for fault in found] == [IntegrityError] * 4
    assert len({str(fault) for fault in found}) == 1 and shard.name in str(found[0])
    found = together(3, lambda group: checkpoints(tmp_path, group).restore(Shards(group)))
    assert [type(fault) for fault in found] == [IntegrityError] * 3, "at another number of ranks too"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "../../../etc"}, "no folder of a checkpoint"),
        ({"pieces": [{"rank": 0, "shared": False, "file": {"uri": "../x", "sha256": "0", "bytes": 1}}]}, "does not lie in"),
        ({"pieces": [{"rank": 0, "shared": True, "file": {"uri": "/etc/x", "sha256": "0", "bytes": 1}}]}, "does not lie in"),
        ({"world_size": "two"}, "world_size"),
        (None, "not the state"),
    ],
)
def test_a_state_that_names_foreign_places_is_refused(tmp_path: Path, change: dict[str, Any] | None, words: str) -> None:
    checkpoints(tmp_path).save(Shards(text="x"), STATE)
    file = tmp_path / "checkpoints" / "phase" / "last" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}) if change else "{")
    with pytest.raises(IntegrityError, match=words) as refusal:
        checkpoints(tmp_path).restore(Shards())
    assert "cure: remove " in str(refusal.value)


def test_another_configuration_starts_anew_and_leaves_nothing_behind(run: str, tmp_path: Path) -> None:
    scratch = str(tmp_path / "scratch")
    checkpoints(run, scratch=scratch).save(Shards(text="x"), STATE)
    points = checkpoints(run, digest="b", scratch=scratch)
    assert points.restore(Shards()) is None
    points.save(Shards(text="y"), TrainState())
    assert files_below(run) == ["model", "shard-000", "state.json"]
    points.clear()
    assert points.read() is None
    assert not files_below(run) and not files_below(scratch)
    assert not storage.exists(f"{run}/checkpoints/phase/last")


def test_another_number_of_ranks_converts_once_and_the_next_restart_finds_its_own(run: str, tmp_path: Path) -> None:
    scratch = str(tmp_path / "scratch")
    together(4, lambda group: checkpoints(run, group, scratch=scratch).save(Shards(group, "t"), STATE))

    def restart(group: Rank) -> tuple[TrainState | None, str, str]:
        backend = Shards(group)
        return checkpoints(run, group, scratch=scratch).restore(backend), backend.text, backend.converted

    assert together(2, restart) == [(STATE, "t", "t+t+t+t+t")] * 2
    assert together(2, restart) == [(STATE, "t", "")] * 2
    assert files_below(run) == ["model", "shard-000", "shard-001", "state.json"]
    assert not list(tmp_path.rglob("*.part"))


def test_what_the_conversion_refuses_is_refused_on_all_ranks_and_stays(tmp_path: Path) -> None:
    together(2, lambda group: checkpoints(tmp_path, group).save(Shards(group, "t"), STATE))

    class Refusing(Shards):
        def convert(self, folder: str, files: Sequence[str], target: str) -> None:
            raise CheckpointError(f"{folder}: holds posix.system, which is not plain data")

    found = together(3, lambda group: checkpoints(tmp_path, group).restore(Refusing(group)))
    assert [type(fault) for fault in found] == [CheckpointError] * 3
    assert together(2, lambda group: checkpoints(tmp_path, group).restore(Shards(group))) == [STATE] * 2
    assert not list(tmp_path.rglob("*.part"))


def test_at_another_number_of_ranks_a_phase_that_took_no_step_begins_anew(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(Shards(text="x"), TrainState())
    assert together(2, lambda group: checkpoints(tmp_path, group).restore(Shards(group))) == [None, None]


def test_a_fence_that_is_down_reaches_all_ranks_and_nothing_is_replaced_or_removed(tmp_path: Path) -> None:
    together(3, lambda group: checkpoints(tmp_path, group).save(Shards(group, "mine"), STATE))

    def fence() -> None:
        raise Preempted("another owner took this run folder over")

    for act in ("save", "restore", "clear"):

        def late(group: Rank, act: str = act) -> Any:
            points, backend = checkpoints(tmp_path, group, fence=fence), Shards(group, "late")
            return {
                "save": lambda: points.save(backend, TrainState(step=9)),
                "restore": lambda: points.restore(backend),
                "clear": points.clear,
            }[act]()

        assert [type(fault) for fault in together(3, late)] == [Preempted] * 3, act
    assert together(3, lambda group: checkpoints(tmp_path, group).restore(Shards(group))) == [STATE] * 3


def test_ranks_that_do_not_share_the_folder_are_told_so(tmp_path: Path) -> None:
    checkpoints(tmp_path / "node0").save(Shards(text="x"), STATE)
    found = together(2, lambda group: checkpoints(tmp_path / f"node{group.rank}", group).restore(Shards(group)))
    assert all(isinstance(fault, IntegrityError) and "different checkpoints" in str(fault) for fault in found)


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
