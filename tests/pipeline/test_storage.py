"""Files appear whole or not at all; command URLs are refused; faults are named."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import (
    exists,
    hash_file,
    info,
    join,
    list_files,
    lock,
    open_read,
    publish,
    publish_bytes,
    read_bytes,
    read_range,
    remove_tree,
    size,
)


@pytest.mark.parametrize("uri", ["pipe:cat /etc/passwd", "pipe://x", "simplecache::s3://b/k", "ftp://host/x", "github://a/b"])
def test_only_plain_storage_is_opened(uri: str) -> None:
    for act in (exists, read_bytes, hash_file, list_files, remove_tree, lambda u: publish_bytes(u, b"")):
        with pytest.raises(ConfigError, match="plain storage"):
            act(uri)


@pytest.mark.parametrize("base", ["local", "memory://store"])
def test_publish_read_hash_list_remove(tmp_path: Path, base: str) -> None:
    folder = str(tmp_path / "a b") if base == "local" else f"{base}/{tmp_path.name}"
    ref = publish_bytes(join(folder, "x", "one.bin"), b"content")
    assert (ref.bytes, ref.sha256) == (7, hashlib.sha256(b"content").hexdigest())
    assert hash_file(ref.uri) == ref
    assert size(ref.uri) == info(ref.uri)["size"] == 7
    assert read_range(ref.uri, 2, 5) == b"nte"
    publish_bytes(join(folder, "two.txt"), b"")
    assert [uri.rsplit("/", 1)[-1] for uri in list_files(folder)] == ["two.txt", "one.bin"]
    assert list_files(folder, ".bin")[0].endswith("x/one.bin")
    with open_read(ref.uri) as stream:
        assert stream.read() == b"content"
    remove_tree(folder)
    assert not exists(folder)
    remove_tree(folder)


@pytest.mark.parametrize("base", ["local", "memory://broken"])
def test_a_writer_that_fails_publishes_nothing(tmp_path: Path, base: str) -> None:
    folder = str(tmp_path / "out") if base == "local" else base
    publish_bytes(join(folder, "kept.bin"), b"old")
    with pytest.raises(RuntimeError, match="mid-way"), publish(join(folder, "kept.bin")) as out:
        out.write(b"half")
        raise RuntimeError("mid-way")
    assert read_bytes(join(folder, "kept.bin")) == b"old"
    assert len(list_files(folder)) == 1


def test_faults_are_named_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"absent\.bin: not found"):
        read_bytes(str(tmp_path / "absent.bin"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        publish_bytes(str(tmp_path / "file" / "below.bin"), b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        publish_bytes(str(tmp_path / "x.bin"), b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_owner_until_its_process_ends(tmp_path: Path) -> None:
    code = f"from pipeline.storage import lock\nwith lock({str(tmp_path)!r}):\n print('own', flush=True)\n input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"own\n"
    with pytest.raises(StorageError, match="another run"), lock(str(tmp_path)):
        pass
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    with lock(str(tmp_path)) as handle:
        assert handle is not None
    with lock("memory://somewhere") as handle:
        assert handle is None
