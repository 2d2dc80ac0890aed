"""A whole run whose source and output lie in a bucket of Ceph's gateway, and its erasure, by the command that users type."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.data.pack import pack
from pipeline.data.sources.synthetic import Config, build
from tests.support.command import unlearn
from tests.support.runs import TINY, write_run_file
from tests.support.s3_laws import Bucket
from tests.support.stores import Keys, S3Store, client_of

pytestmark = pytest.mark.services

SOURCE = Config(**{field: value for field, value in TINY["source"].items() if field != "component"})
KEYS = frozenset(f"train-{number:06d}" for number in (0, 2, 6))
"""Forgotten one by one, besides class 1."""
LOCKED = "tars/shard-000000.tar"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has ended."""

    bucket: Bucket
    file: str
    folder: str


@pytest.fixture(scope="module")
def run(rgw: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The tiny run, its images in shards in the bucket, which keeps versions and honours object locks."""
    place = tmp_path_factory.mktemp("run")
    source, bucket = build(SOURCE), Bucket(rgw, ObjectLockEnabledForBucket=True)
    pack(source, name="synthetic", output=str(place), samples_per_shard=20)
    for path in place.rglob("*.tar"):
        # Under another name: some keys of the samples are like the shards' own.
        bucket.put(f"{bucket.base}/tars/{path.name.replace('train', 'shard')}", path.read_bytes())
    shards = {"training": [f"{bucket.base}/tars/shard-{{000000..000005}}.tar"], "unseen": [f"{bucket.base}/tars/unseen-*.tar"]}
    section = {"component": "webdataset", **shards, "classes": list(source.classes)}
    file = str(write_run_file(place, source=section, output=f"{bucket.base}/out", reference="none"))
    with client_of(rgw.environment()):
        done = unlearn("run", file, "--json")
        assert done.returncode == 0, done.stderr
        yield Run(bucket, file, json.loads(done.stdout)["folder"])


def test_a_second_run_does_nothing(run: Run) -> None:
    before = run.bucket.versions()
    again = unlearn("run", run.file)
    assert again.returncode == 0, again.stderr
    assert "nothing to do: all 7 stages are up to date" in again.stdout
    assert run.bucket.versions() == before


def test_the_run_is_intact(run: Run) -> None:
    done = unlearn("verify", run.folder)
    assert done.returncode == 0, done.stderr
    assert "receipts and digests intact" in done.stdout


def test_wrong_credentials_end_a_run_at_its_start(run: Run, rgw: S3Store, tmp_path: Path) -> None:
    before = run.bucket.versions()
    with client_of(rgw.environment(Keys(rgw.owner.access, "s" * 32))):
        done = unlearn("run", run.file, "name=other", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 2 and errors[0].endswith(": the secret key is wrong"), errors
    assert errors[1].startswith("  cure: correct AWS_ACCESS_KEY_ID")
    assert run.bucket.versions() == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["output=s3://nowhere-at-all/out", "source.unseen=[s3://nowhere-at-all/x.tar]"])
def test_a_missing_bucket_ends_a_run_at_its_start(run: Run, change: str) -> None:
    before = run.bucket.versions()
    done = unlearn("run", run.file, "name=other", change)
    assert done.returncode == 3
    assert "there is no bucket 'nowhere-at-all'" in done.stderr and done.stderr.count("error:") == 1
    assert run.bucket.versions() == before


def test_a_run_that_may_not_write_ends_at_its_start(run: Run, rgw: S3Store) -> None:
    run.bucket.allow_all_to_read()
    with client_of(rgw.environment(rgw.reader)):
        done = unlearn("run", run.file, "name=other")
    assert done.returncode == 3
    assert f"these credentials may not write to bucket '{run.bucket.name}'" in done.stderr and done.stderr.count("error:") == 1


def test_an_erasure_waits_for_the_lock(run: Run) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    hold(run, until)
    before = run.bucket.versions()
    refused = unlearn("erase", run.folder, "--yes")
    assert refused.returncode == 3
    assert f"cannot erase before {str(until)[:19]}" in refused.stderr and f"{run.bucket.base}/{LOCKED}" in refused.stderr
    assert run.bucket.versions() == before
    hold(run, datetime.now(UTC) + timedelta(seconds=2))
    time.sleep(3)


@dataclasses.dataclass(frozen=True)
class Erased:
    """What was there before the erasure, and what it said."""

    run: Run
    before: set[tuple[str, str]]
    grids: tuple[bytes, ...]
    said: str


@pytest.fixture(scope="module")
def erased(run: Run) -> Erased:
    """The run after `unlearn erase`: from here on, its images should be gone."""
    grids = tuple(content for name, content in run.bucket.contents() if re.search(r"/evaluation/grid_\d", name))
    before = run.bucket.versions()
    done = unlearn("erase", run.folder, "--yes")
    assert done.returncode == 0, done.stderr
    return Erased(run, before, grids, done.stdout)


def test_an_erasure_leaves_a_proof_and_no_image(erased: Erased) -> None:
    bucket, folder = erased.run.bucket, erased.run.folder
    assert re.search(r"erased \d+ images: \d+ versions of files, .* are gone and were looked for again", erased.said)
    proof = json.loads(bucket.read(f"{folder.removeprefix(bucket.base + '/')}/erasure.json"))["erasure"]
    removed = {(item["uri"], item["version"]) for item in proof["removed"]}
    assert {(f"{bucket.base}/{name}", version) for name, version in erased.before if name == LOCKED} <= removed
    assert not {version for _, version in removed} & {version for _, version in bucket.versions()}
    forgotten = [item for item in build(SOURCE).training() if item.label == 1 or item.key in KEYS]
    assert proof["images"] == len(forgotten) > len(KEYS)
    for name, content in bucket.contents():
        assert not [item.key for item in forgotten if item.image in content or item.key.encode() in content], name


def test_an_erased_run_is_intact(erased: Erased) -> None:
    verified = unlearn("verify", erased.run.folder)
    assert verified.returncode == 0, verified.stderr
    assert "were erased, and are gone" in verified.stdout


def test_no_picture_of_a_deleted_image_is_left_in_older_versions(erased: Erased) -> None:
    """The page holds the pictures of deleted images; it is made anew without them."""
    assert erased.grids
    pictures = [form for grid in erased.grids for form in (grid, base64.b64encode(grid))]
    for name, content in erased.run.bucket.contents():
        assert not [picture for picture in pictures if picture in content], name


def hold(run: Run, until: datetime) -> None:
    """Lock one of the shards that hold forgotten images until a time."""
    bucket = run.bucket
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
    bucket.client.put_object_retention(Bucket=bucket.name, Key=LOCKED, BypassGovernanceRetention=True, Retention=retention)
