"""What must hold when the network or the store misbehaves: batches equal to those of a quiet day, bit by bit, or a named
failure; nothing between. A test module gives `store` and `behind` as fixtures."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import ReadingConfig
from pipeline.errors import DataError, IntegrityError, StorageError
from pipeline.storage import publish_bytes
from tests.support.cuts import CutRun, batches, cut, upload, write_tars
from tests.support.faults import FAULTS, FOREVER, QUIET, FaultProxy, Request, Weather, fault_proxy
from tests.support.s3_erasure import erase, erasing, traces
from tests.support.s3_laws import Bucket
from tests.support.stores import S3Store, client_of

LAYOUT = tuple(tuple(place % 3 if shard < 2 else place % 2 * 2 for place in range(16)) for shard in range(5))
"""Three shards that are cut, and two that stay where they are."""
CLEAN = "tars/train-3.tar"
READING = ReadingConfig(threads=2, attempt_seconds=0.5, deadline_seconds=60)
SILENCE = 1.5
"""Longer than an attempt: a request that is silent is given up."""


NO_LIES = tuple(fault for fault in FAULTS if fault != "corrupt")


class FirstOf:
    """Lets the first few of the requests that `only` names meet a fault."""

    def __init__(self, count: int, only: Callable[[Request], bool]) -> None:
        self._left, self._only, self._lock = count, only, threading.Lock()

    def __call__(self, request: Request) -> bool:
        with self._lock:
            mine = self._left > 0 and self._only(request)
            self._left -= mine
        return mine


def shards(request: Request) -> bool:
    """Requests for bytes of shards."""
    return request.method == "GET" and request.is_object and ".tar" in request.path


@dataclasses.dataclass(frozen=True)
class Behind:
    """A run behind a proxy, and its batches on a quiet day."""

    bucket: Bucket
    proxy: FaultProxy
    run: CutRun
    quiet: list[tuple[Any, ...]]


@contextlib.contextmanager
def behind_proxy(store: S3Store, folder: Path) -> Iterator[Behind]:
    """A source cut on a quiet day; the body is a client that reaches the store through the proxy only."""
    bucket = Bucket(store)
    write_tars(folder / "tars", LAYOUT)
    upload(folder / "tars", f"{bucket.base}/tars", bucket.put)
    with client_of(store.environment()):
        run = cut(f"{bucket.base}/tars", f"{bucket.base}/out")
        quiet = batches(run)
    with fault_proxy(store.endpoint) as proxy, client_of(store.environment(endpoint=proxy.endpoint)):
        yield Behind(bucket, proxy, run, quiet)


class FaultLaws:
    """A stream of two ranks, two passes over clean and rewritten shards."""

    def test_the_faults_together(self, behind: Behind) -> None:
        behind.proxy.set(Weather(FAULTS, share=0.5, most=2, seed=1, silence=SILENCE, only=shards))
        assert batches(behind.run, READING) == behind.quiet
        assert set(behind.proxy.done) == set(FAULTS) and behind.proxy.passed > 10

    @pytest.mark.parametrize("fault", ["busy", "corrupt"])
    def test_what_does_not_pass_is_named(self, behind: Behind, fault: str) -> None:
        self.check_named(behind, fault)

    def check_named(self, behind: Behind, fault: str) -> None:
        """From the second request for a shard on, all fail for ever."""
        behind.proxy.set(
            Weather((fault,), most=FOREVER, seed=1, silence=SILENCE, only=lambda r: shards(r) and "train-3" in r.target)
        )
        wanted = IntegrityError if fault == "corrupt" else StorageError
        with pytest.raises(wanted) as caught:
            batches(behind.run, dataclasses.replace(READING, deadline_seconds=1))
        where = f"{behind.bucket.base}/{CLEAN}: "
        what = "s3/img" if fault == "corrupt" else "bytes "
        assert caught.value.message.startswith(where + what), caught.value
        assert ("differ from the index" if fault == "corrupt" else "failed for 1 s") in caught.value.message
        assert behind.proxy.done[fault] > 1


class EveryFaultLaws(FaultLaws):
    """Each fault alone, many seeds, and all that is asked for on the way to a run, not the shards alone."""

    @pytest.mark.parametrize("fault", FAULTS)
    def test_each_fault_alone(self, behind: Behind, fault: str) -> None:
        behind.proxy.set(Weather((fault,), share=0.4, most=2, seed=2, silence=SILENCE, only=shards))
        assert batches(behind.run, READING) == behind.quiet
        assert set(behind.proxy.done) == {fault} and behind.proxy.done[fault] > 5

    @pytest.mark.parametrize("seed", [3, 4, 5])
    def test_any_schedule_of_all_faults(self, behind: Behind, seed: int) -> None:
        """Nothing is spared, the index and its rows neither."""
        behind.proxy.set(Weather(FAULTS, share=0.3, most=3, seed=seed, silence=SILENCE))
        try:
            given = batches(behind.run, READING)
        except (IntegrityError, StorageError) as fault:
            assert behind.bucket.base in fault.message
        else:
            assert given == behind.quiet
        assert len(behind.proxy.done) > 3

    @pytest.mark.parametrize("fault", ["reset", "short", "silent"])
    def test_each_fault_for_ever_is_named(self, behind: Behind, fault: str) -> None:
        self.check_named(behind, fault)

    def test_half_a_minute_of_silence_is_not_waited_for(self, behind: Behind) -> None:
        """With the settings that users have: a read is sent again after ten seconds, an upload after fifteen."""
        behind.proxy.set(Weather(("silent",), most=1, silence=30, only=FirstOf(3, shards)))
        began = time.monotonic()
        assert batches(behind.run, ReadingConfig(threads=2)) == behind.quiet
        assert behind.proxy.done["silent"] == 3
        behind.proxy.set(Weather(("silent",), most=1, silence=30, only=FirstOf(1, lambda request: request.method == "PUT")))
        publish_bytes(f"{behind.bucket.base}/late", b"late")
        assert behind.proxy.done["silent"] == 1
        assert 20 < time.monotonic() - began < 50
        assert behind.bucket.read("late") == b"late"

    @pytest.mark.parametrize("seed", [6, 7])
    def test_a_source_is_indexed_and_cut_alike(self, behind: Behind, seed: int) -> None:
        behind.proxy.set(Weather(NO_LIES, share=0.5, most=2, seed=seed, silence=0.5))
        run = cut(f"{behind.bucket.base}/tars", f"{behind.bucket.base}/out-{seed}")
        assert len(behind.proxy.done) > 3
        assert run.content == behind.run.content
        assert [ref.sha256 for ref in run.manifest.index] == [ref.sha256 for ref in behind.run.manifest.index]

    def test_bytes_that_come_wrong_while_they_are_indexed_are_read_again_or_named(self, behind: Behind) -> None:
        """The store's own digest tells, unless the tar is damaged so that it cannot be read to its end."""
        alike = 0
        for seed in range(6):
            behind.proxy.set(Weather(("corrupt",), most=1, seed=seed, only=lambda request: request.path.endswith(CLEAN)))
            try:
                run = cut(f"{behind.bucket.base}/tars", f"{behind.bucket.base}/lie-{seed}")
                behind.proxy.set(QUIET)
                assert batches(run) == behind.quiet and run.content == behind.run.content
                alike += 1
            except (DataError, IntegrityError) as fault:
                assert fault.message.startswith(f"{behind.bucket.base}/{CLEAN}: ")
        assert alike > 1

    @pytest.mark.parametrize("megabytes", [1, 11])
    def test_a_byte_that_changes_on_the_way_up_is_refused(
        self, behind: Behind, megabytes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The store compares digests, also of each part of the larger one, and the part is sent again."""
        monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
        content = random.Random(megabytes).randbytes(megabytes << 20)
        behind.proxy.set(Weather(("corrupt",), most=1, only=lambda request: request.method == "PUT"))
        publish_bytes(f"{behind.bucket.base}/up/{megabytes}", content)
        assert behind.bucket.read(f"up/{megabytes}") == content
        assert behind.proxy.done["corrupt"] == (3 if megabytes == 11 else 1)

    def test_nothing_is_left_of_what_was_erased(self, behind: Behind, store: S3Store, tmp_path: Path) -> None:
        bucket = Bucket(store)
        bucket.keep_versions()
        upload(write_tars(tmp_path / "tars")[0].parent, f"{bucket.base}/tars", bucket.put)
        run = cut(f"{bucket.base}/tars", f"{bucket.base}/out")
        assert list(traces(bucket))
        behind.proxy.set(Weather(NO_LIES, share=0.2, most=2, seed=8, silence=0.5))
        erase(erasing(run, tmp_path)[0])
        assert len(behind.proxy.done) > 2
        assert not list(traces(bucket))
