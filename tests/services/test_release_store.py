"""Releases in a bucket: hosts that send at once, the store's conditional write, and older versions that a removal takes along."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.keys import read_secret
from launch.released import releases
from launch.retention import keep, kept, retire
from launch.verify_bundle import verify_release
from pipeline.aliases import changes
from pipeline.errors import StorageError
from pipeline.signing import read_private
from tests.support.finished import GROUPS
from tests.support.releasing import NOW, WIDER, Place, other_run, place, usual_run
from tests.support.stores import S3Store, client_of, moto

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with moto(tmp_path_factory.mktemp("moto")) as found:
        yield found


def as_host(base: str, run: str, environment: dict[str, str], to: str) -> None:
    """Another host that sends the same run; what came of it lies in a file."""
    room = Place(base=Path(base), key=read_private(f"{base}/signer.key"), secret=read_secret(f"{base}/digests.key"))
    with client_of(environment):
        try:
            made = room.send(Path(run), to=to, alias="production")
            said = f"{made.new} {made.promotion.did if made.promotion else ''}"
        except StorageError as fault:
            said = fault.message
    Path(base, f"said-{os.getpid()}.txt").write_text(said)


def test_hosts_at_once_make_one_release_and_one_change(store: S3Store, tmp_path: Path) -> None:
    room, run, to = place(tmp_path), usual_run(tmp_path / "run"), "s3://releases/models"
    store.client.create_bucket(Bucket="releases")
    context = multiprocessing.get_context("spawn")
    words = (str(tmp_path), str(run), store.environment(), to)
    workers = [context.Process(target=as_host, args=words) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    said = sorted(path.read_text() for path in tmp_path.glob("said-*.txt"))
    assert sum(text.startswith("True") for text in said) == 1, said
    assert all(text.split()[0] in ("True", "False") or "at the same time" in text for text in said), said
    with client_of(store.environment()):
        (made,) = releases(f"{to}/tiny", (room.key.public,)).values()
        assert verify_release(made.folder, room.key.public).faults == ()
        assert not room.send(run, to=to, alias="production").new
        assert [item.version for item in changes(f"{to}/tiny", "production")] == [made.version]


def test_retired_weights_are_gone_with_their_older_versions(store: S3Store, tmp_path: Path) -> None:
    room, line = place(tmp_path), "s3://versioned/tiny"
    store.client.create_bucket(Bucket="versioned")
    store.client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    run = usual_run(tmp_path / "first")
    wider = other_run(tmp_path / "second", requests=WIDER, groups=GROUPS, model=b"wider" * 1000)
    with client_of(store.environment()):
        first = room.send(run, to="s3://versioned", alias="production").release
        second = room.send(wider, to="s3://versioned", alias="production")
        keep(line, second.release, str(wider), days=0, now=NOW)
        assert [item.version for item in kept(line, second.known) if item.kind == "release"] == [first.version]
        retire(line, second.known, by="t", now=NOW)
    listed = store.client.list_object_versions(Bucket="versioned", Prefix=f"tiny/{first.version}/model.safetensors")
    assert not listed.get("Versions") and not listed.get("DeleteMarkers")
