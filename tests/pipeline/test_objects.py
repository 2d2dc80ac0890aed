"""Versions of files and of objects in memory: one each, removed once, and named when it cannot be. S3 has services of its own."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.objects import Version, abort_uploads, knows_versions, locked_until, other_name, remove, versions


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An object of seven bytes."""
    if request.param == "file":
        (tmp_path / "x.tar").write_bytes(b"content")
        return str(tmp_path / "x.tar")
    address = f"memory://{tmp_path.name}/x.tar"
    with fsspec.open(address, "wb") as stream:
        stream.write(b"content")
    return address


def test_an_object_has_one_version_which_is_the_latest(uri: str) -> None:
    assert versions(uri) == (Version(uri=uri, version="", bytes=7, marker=False, latest=True),)


def test_removed_it_has_no_version_and_removing_it_again_does_nothing(uri: str) -> None:
    (version,) = versions(uri)
    for _ in range(2):
        remove(version)
        assert versions(uri) == ()
    assert not fsspec.core.url_to_fs(uri)[0].exists(fsspec.core.url_to_fs(uri)[1])


def test_its_neighbours_stay(uri: str) -> None:
    """Names that begin with its own are other objects: S3 lists by prefix, and so must no store remove."""
    name = f"{uri}.bak"
    with fsspec.open(name, "wb") as stream:
        stream.write(b"other")
    (version,) = versions(uri)
    remove(version)
    assert [found.bytes for found in versions(name)] == [5]


def test_nothing_holds_it_and_there_are_no_unfinished_uploads(uri: str) -> None:
    (version,) = versions(uri)
    assert locked_until(version) == ""
    assert abort_uploads(uri) == 0
    assert other_name(uri) == ""


@pytest.mark.parametrize(
    ("address", "known"),
    [("x.tar", True), ("file:///x.tar", True), ("s3://b/x.tar", True), ("s3a://b/x.tar", True)]
    + [(f"{scheme}://b/x.tar", False) for scheme in ("memory", "gs", "az", "https")],
)
def test_only_stores_whose_versions_can_be_listed_are_said_to_be_known(address: str, known: bool) -> None:
    assert knows_versions(address) is known


def test_nothing_lies_where_nothing_lies(tmp_path: Path) -> None:
    for address in (str(tmp_path / "absent"), f"memory://{tmp_path.name}/absent"):
        assert versions(address) == ()
        assert other_name(address) == ""
    remove(Version(uri=str(tmp_path / "absent"), version="", bytes=0))


def test_addresses_that_are_no_storage_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a plain storage address"):
        versions("pipe:rm x")


def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder: remove: "):
        remove(Version(uri=str(tmp_path / "folder"), version="", bytes=0))
    assert (tmp_path / "folder").is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="x: remove: permission denied"):
        remove(Version(uri=str(tmp_path / "x"), version="", bytes=0))
    tmp_path.chmod(0o700)


def test_links_are_told_from_files_because_removing_them_leaves_the_bytes(tmp_path: Path) -> None:
    target = tmp_path / "target.tar"
    target.write_bytes(b"content")
    assert other_name(str(target)) == ""
    (tmp_path / "link.tar").symlink_to(target)
    assert other_name(str(tmp_path / "link.tar")) == f"a symbolic link to {target}"
    assert other_name(str(target)) == ""
    os.link(target, tmp_path / "twin.tar")
    assert "2 hard links" in other_name(str(target)) and "2 hard links" in other_name(str(tmp_path / "twin.tar"))
