"""Google's and Azure's storage through fsspec, against their servers for development: index, stream, write, refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.access import check_access
from pipeline.config import ReadingConfig
from pipeline.errors import StorageError
from pipeline.storage import exists, list_files, open_read, publish, publish_bytes, read_bytes, remove_tree
from tests.support import stores
from tests.support.command import unlearn
from tests.support.cuts import batches, cut, upload, write_tars

pytestmark = pytest.mark.services

SERVERS = {"gs": (stores.missing_gcs, stores.fake_gcs), "az": (stores.missing_azurite, stores.azurite)}


def put(uri: str, content: bytes) -> None:
    """Write by fsspec alone."""
    with fsspec.open(uri, "wb") as stream:
        stream.write(content)


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The scheme of a store that runs; this process is its client."""
    missing, running = SERVERS[request.param]
    if reason := missing():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp(request.param)) as environment, stores.client_of(environment):
        yield request.param


@pytest.fixture(scope="module")
def base(scheme: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the shards lie, below `tars`."""
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder)
    upload(folder, f"{scheme}://images/tars", put)
    return f"{scheme}://images"


def test_a_source_in_the_cloud_is_what_it_is_on_disk(base: str, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    here, there = cut(f"{tmp_path}/tars", f"{tmp_path}/out"), cut(f"{base}/tars", f"{base}/out")
    assert there.content == here.content
    for split in ("forget", "retain"):
        assert batches(there, split=split) == batches(here, split=split)
    reading = ReadingConfig(threads=2, cache_folder=str(tmp_path / "cache"))
    assert batches(there, reading) == batches(there, reading) == batches(here)


def test_the_command_indexes_it(base: str) -> None:
    done = unlearn("index", f"{base}/tars/train-*.tar", "--out", f"{base}/index", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["training"], answer["shards"], answer["generation"]) == (14, 4, 1)
    again = unlearn("index", f"{base}/tars/train-{{0..3}}.tar", "--out", f"{base}/index", "--json")
    assert json.loads(again.stdout)["training"] == 14, again.stderr


# aiohttp's advice to the two clients, who hand it the whole part.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("megabytes", [0, 9])
def test_what_is_published_is_there_whole(base: str, megabytes: int) -> None:
    content, uri = bytes(range(256)) * 4096 * megabytes, f"{base}/a folder/{megabytes}.bin"
    publish_bytes(uri, content)
    publish_bytes(uri, content)
    with fsspec.open(uri, "rb") as stream:
        assert stream.read() == content
    assert read_bytes(uri) == content
    with open_read(uri) as stream:
        assert stream.read() == content
    assert list_files(f"{base}/a folder", f"{megabytes}.bin") == [uri]
    remove_tree(uri)
    assert not exists(uri)


def test_a_writer_that_fails_leaves_nothing(base: str) -> None:
    with pytest.raises(RuntimeError, match="the writer"), publish(f"{base}/x/y.bin") as out:
        out.write(bytes(1 << 20))
        raise RuntimeError("the writer failed")
    assert not exists(f"{base}/x/y.bin") and not exists(f"{base}/x")


def test_leave_is_asked_for_and_nothing_is_left_of_it(base: str) -> None:
    check_access(f"{base}/runs", write=True)
    check_access(f"{base}/tars", write=False)
    assert not exists(f"{base}/runs")


@pytest.mark.parametrize("write", [False, True])
def test_a_missing_bucket_has_one_message(scheme: str, base: str, write: bool) -> None:
    uri = f"{scheme}://nowhere-at-all/runs"
    with pytest.raises(StorageError) as caught:
        check_access(uri, write=write)
    assert caught.value.message == f"{uri}: there is no bucket 'nowhere-at-all'"
    assert caught.value.cure == "create it, or correct the address"


def test_wrong_credentials_have_one_message(scheme: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if scheme == "gs":
        pytest.skip("fake-gcs-server lets everybody in")
    right = dict(part.partition("=")[::2] for part in os.environ["AZURE_STORAGE_CONNECTION_STRING"].split(";") if part)
    wrong = {**right, "AccountKey": "d3Jvbmcga2V5"}
    with stores.client_of({"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in wrong.items())}):
        with pytest.raises(StorageError) as caught:
            check_access(f"{base}/runs", write=True)
    assert caught.value.message == f"{base}/runs: the credentials are wrong"
    assert wrong["AccountKey"] not in str(caught.value)
