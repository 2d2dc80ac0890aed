"""A bucket carries checkpoints from machine to machine, and a rank's work stays the same at any number of ranks. Ranks are
threads here, and machines are scratch folders."""

from __future__ import annotations

import builtins
import os
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.engine import places
from pipeline.engine.checkpoint import TrainState
from pipeline.errors import IntegrityError, StorageError
from tests.pipeline.engine.test_agreement import Rank, together
from tests.pipeline.engine.test_checkpoint import STATE, Shards, checkpoints, files_below
from tests.support.stores import client_of, moto


def across_machines(run: str, tmp_path: Path, fetched: list[str]) -> None:
    """Save on two machines; restart there, on new ones, and on one."""

    def on(machines: str) -> Any:
        def restart(group: Rank) -> tuple[TrainState | None, str]:
            backend = Shards(group)
            points = checkpoints(run, group, scratch=str(tmp_path / f"{machines}{group.rank}"))
            return points.restore(backend), backend.text

        return restart

    together(2, lambda group: checkpoints(run, group, scratch=str(tmp_path / f"old{group.rank}")).save(Shards(group, "t"), STATE))
    assert files_below(run) == ["model", "shard-000", "shard-001", "state.json"]
    fetched.clear()
    assert together(2, on("old")) == [(STATE, "t")] * 2
    assert sorted(fetched) == ["model"], "what a machine has is not downloaded again; the second one lacks what all share"
    fetched.clear()
    assert together(2, on("new")) == [(STATE, "t")] * 2
    assert sorted(fetched) == ["model", "model", "shard-000", "shard-001"]
    assert files_below(tmp_path / "new1") == ["model", "shard-001"]
    fetched.clear()
    assert together(1, on("third")) == [(STATE, "t")]
    assert sorted(fetched) == ["model", "shard-000", "shard-001"]
    assert files_below(run) == ["model", "shard-000", "state.json"]
    points = checkpoints(run, scratch=str(tmp_path / "third0"))
    points.clear()
    assert not files_below(run) and not files_below(tmp_path / "third0")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    inner = places.open_read
    monkeypatch.setattr(places, "open_read", lambda uri: (found.append(uri.rpartition("/")[2]), inner(uri))[1])
    return found


def test_a_bucket_carries_a_checkpoint_from_machine_to_machine(tmp_path: Path, fetched: list[str]) -> None:
    across_machines(f"memory://{uuid.uuid4().hex}/run", tmp_path, fetched)


def test_a_bucket_behind_s3_s_interface_too(tmp_path: Path, fetched: list[str]) -> None:
    with moto(tmp_path) as store, client_of(store.environment()):
        store.client.create_bucket(Bucket="runs")
        across_machines("s3://runs/out/run", tmp_path, fetched)


def test_a_file_in_a_bucket_that_changed_or_went_is_refused(tmp_path: Path) -> None:
    run = f"memory://{uuid.uuid4().hex}/run"
    together(2, lambda group: checkpoints(run, group, scratch=str(tmp_path / "old")).save(Shards(group, "t"), STATE))
    (shard,) = (uri for uri in storage.list_files(run) if uri.endswith("shard-001"))
    for number, act in enumerate((lambda: storage.publish_bytes(shard, b"wrong"), lambda: storage.remove_tree(shard))):
        act()
        scratch = str(tmp_path / f"new{number}")
        found = together(2, lambda group, to=scratch: checkpoints(run, group, scratch=to).restore(Shards(group)))
        assert all(isinstance(fault, IntegrityError) and "shard-001: not the bytes" in str(fault) for fault in found)
        assert "shard-001" not in files_below(scratch)


def test_a_scratch_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(StorageError, match="belongs to another user"):
        checkpoints(f"memory://{uuid.uuid4().hex}/run", scratch=str(tmp_path)).save(Shards(text="x"), STATE)


class Meter:
    """Counts what each thread asks of the disk."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: dict[int, Counter[str]] = {}
        size, inner = os.path.getsize, builtins.open

        def opened(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            kind = "state" if str(path).endswith("state.json") else "shards"
            self._add(f"{kind} opened", 1)
            self._add(f"{kind} read", size(path) if "r" in mode else 0)
            return inner(path, mode, *arguments, **named)

        patch.setattr(builtins, "open", opened)
        for name in ("scandir", "listdir", "stat", "mkdir", "unlink", "remove", "rmdir"):
            patch.setattr(os, name, self._counting(name, getattr(os, name)))

    def _add(self, what: str, count: int) -> None:
        self.found.setdefault(threading.get_ident(), Counter())[what] += count

    def _counting(self, what: str, call: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._add(what, 1)
            return call(*arguments, **named)

        return counted

    def most(self) -> Counter[str]:
        """The highest count of any rank."""
        return Counter({what: max(rank[what] for rank in self.found.values()) for what in set().union(*self.found.values())})


def test_what_a_rank_does_stays_the_same_at_any_number_of_ranks(tmp_path: Path) -> None:
    costs: dict[int, Counter[str]] = {}
    for count in (8, 64, 512):

        def restore_and_save(group: Rank, folder: str = str(tmp_path / str(count))) -> None:
            points, backend = checkpoints(folder, group), Shards(group)
            assert points.restore(backend) == STATE
            points.save(backend, TrainState(step=4))

        folder = tmp_path / str(count)
        together(count, lambda group, folder=folder: checkpoints(folder, group).save(Shards(group, "t"), STATE))
        with pytest.MonkeyPatch.context() as patch:
            meter = Meter(patch)
            assert together(count, restore_and_save) == [None] * count
        costs[count] = meter.most()
    few, some, many = costs.values()
    assert some.pop("state read") <= 250 * 64, "the state has one line of each rank"
    assert many.pop("state read") <= 250 * 512
    assert many["shards opened"] == few["shards opened"] > 0 and many["shards read"] == few["shards read"] > 0
    for what in many:
        assert abs(many[what] - few[what]) <= 4 and abs(some[what] - few[what]) <= 4, f"{what}: who is first makes the folders"
