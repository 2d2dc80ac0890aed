"""What erasure must do on any store behind S3's interface that keeps versions and honours object locks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import erase as act
from pipeline.config import RunConfig, resolve
from pipeline.data.erase import Erasing
from pipeline.errors import StorageError
from pipeline.objects import Version, abort_uploads, locked_until, versions
from pipeline.orders import EraseOrder, ErasurePlan
from pipeline.records import Gone
from pipeline.stages.runner import Job
from tests.support.cuts import FORGOTTEN, LAYOUT, CutRun, cut, image, upload, write_tars
from tests.support.runs import write_run_file
from tests.support.s3_laws import Bucket, WithBucket
from tests.support.stores import S3Store, client_of

CLASS_ONE_SHARDS = ("tars/train-0.tar", "tars/train-1.tar", "tars/train-2.tar")


def erasing(run: CutRun, folder: Path) -> tuple[Erasing, RunConfig]:
    """The erasure of a run that was cut."""
    config = dataclasses.replace(resolve(str(write_run_file(folder, name="run"))), output=run.output)
    return Erasing(run.folder, config, run.manifest), config


def erase(work: Erasing, planned: tuple[Gone, ...] = ()) -> tuple[tuple[Gone, ...], int]:
    """The acts of an erasure in their order; returns its plan, and how many unfinished uploads were aborted."""
    planned = planned or work.plan()
    assert work.locks(planned) == ()
    stones = work.tombstones()
    work.put_rest()
    after = work.publish_generation()
    uploads = work.remove(planned)
    assert work.sweep(after, planned, stones)["versions"] == len(planned)
    return planned, uploads


class ErasureLaws(WithBucket):
    """A bucket that keeps versions, and one with locks."""

    def run(self, bucket: Bucket, folder: Path) -> CutRun:
        upload(write_tars(folder / "tars")[0].parent, f"{bucket.base}/tars", bucket.put)
        return cut(f"{bucket.base}/tars", f"{bucket.base}/out")

    def test_no_version_of_what_held_a_deleted_image_is_left(self, bucket: Bucket, tmp_path: Path) -> None:
        """Older versions, removals in between, an upload that was never finished: and all that only looks alike stays."""
        bucket.keep_versions()
        for key in CLASS_ONE_SHARDS:
            bucket.put(f"{bucket.base}/{key}", image(FORGOTTEN[0]))  # an older version that no index knows
        bucket.client.delete_object(Bucket=bucket.name, Key=CLASS_ONE_SHARDS[0])
        bucket.put(f"{bucket.base}/{CLASS_ONE_SHARDS[0]}.old", b"a neighbour")
        neighbours = {entry for entry in bucket.versions() if entry[0].endswith(".old")}
        run = self.run(bucket, tmp_path)
        for key in (*CLASS_ONE_SHARDS[:2], f"{CLASS_ONE_SHARDS[0]}.old"):
            bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
        before = {key: len([entry for entry in bucket.versions() if entry[0] == key]) for key in CLASS_ONE_SHARDS}
        assert before == dict(zip(CLASS_ONE_SHARDS, (3, 2, 2), strict=True))
        assert sorted(traces(bucket)) != []
        planned, uploads = erase(erasing(run, tmp_path)[0])
        assert uploads == 2
        assert list(traces(bucket)) == []
        left = [key for key, _ in sorted(bucket.versions()) if key.startswith("tars/")]
        kept = [f"tars/train-{n}.tar" for n in range(len(LAYOUT)) if n != 1]
        assert left == sorted([*kept, f"{CLASS_ONE_SHARDS[0]}.old", "tars/unseen.tar"])
        assert neighbours <= bucket.versions()
        assert bucket.uploads() == [f"{CLASS_ONE_SHARDS[0]}.old"]
        after = bucket.versions()
        assert erase(erasing(run, tmp_path)[0], planned) == (planned, 0)
        assert bucket.versions() == after, "done a second time, it finds nothing more"

    def test_pages_of_versions_and_uploads_are_all_read(self, bucket: Bucket) -> None:
        bucket.keep_versions()
        uri = f"{bucket.base}/x.tar"
        made = {bucket.put(uri, str(number).encode()) for number in range(5)}
        for _ in range(5):
            bucket.client.create_multipart_upload(Bucket=bucket.name, Key="x.tar")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.objects._pages", in_small_pages(patch))
            assert {version.version for version in versions(uri)} == made
            assert abort_uploads(uri) == 5
        assert bucket.uploads() == []
        assert versions(f"{bucket.base}/x") == (), "the name is not a beginning of names"

    @pytest.fixture
    def locked(self, store: S3Store) -> Iterator[Bucket]:
        """A bucket with object locks."""
        bucket = Bucket(store, ObjectLockEnabledForBucket=True)
        with client_of(store.environment()):
            yield bucket

    def test_under_an_object_lock_nothing_is_touched(
        self, locked: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, key = self.run(locked, tmp_path), CLASS_ONE_SHARDS[1]
        config = erasing(run, tmp_path)[1]
        # Only the lock is asked about here; an erasure behind a whole run: tests/services/test_ceph_run.py.
        monkeypatch.setattr(act, "_finished", lambda folder: Job(spec=None, config=config, folder=folder))  # type: ignore[arg-type]
        monkeypatch.setattr(act, "read_manifest", lambda job: run.manifest)
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
        locked.client.put_object_retention(
            Bucket=locked.name, Key=key, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until}
        )
        before = locked.versions()
        for date in (str(until)[:19], "9999-12-31 (legal hold)"):
            if "hold" in date:
                locked.client.put_object_legal_hold(Bucket=locked.name, Key=key, LegalHold={"Status": "ON"})
            plan = act.run(EraseOrder(folder=run.folder, do=False))
            assert isinstance(plan, ErasurePlan) and len(plan.locked) == 1 and date in plan.locked[0]
            with pytest.raises(StorageError) as caught:
                act.run(EraseOrder(folder=run.folder, do=True))
            assert caught.value.message.startswith(f"cannot erase before {date}")
            assert f"{locked.base}/{key}" in caught.value.message
            assert locked.versions() == before

    def test_a_lock_that_has_run_out_holds_nothing(self, locked: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = f"{locked.base}/x.tar"
        version = locked.put(uri, b"x")
        soon = datetime.now(UTC) + timedelta(hours=1)
        locked.client.put_object_retention(
            Bucket=locked.name, Key="x.tar", Retention={"Mode": "GOVERNANCE", "RetainUntilDate": soon}
        )
        entry = Version(uri=uri, version=version, bytes=1)
        assert locked_until(entry).startswith(str(soon)[:16])
        monkeypatch.setattr("pipeline.objects.time.time", lambda: soon.timestamp() + 1)
        assert locked_until(entry) == ""


def in_small_pages(patch: pytest.MonkeyPatch) -> Any:
    """`pipeline.objects._pages` that asks the store for two entries a page."""
    from pipeline import objects

    whole = objects._pages

    def pages(fs: Any, call: str, wanted: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        limit = {"MaxUploads" if "uploads" in call else "MaxKeys": 2}
        return whole(fs, call, wanted, **arguments, **limit)

    return pages


def traces(bucket: Bucket) -> Iterator[str]:
    """Versions that hold a forgotten image or its key, wherever in the bucket."""
    for key, content in bucket.contents():
        if any(image(name) in content or name.encode() in content for name in FORGOTTEN):
            yield key
