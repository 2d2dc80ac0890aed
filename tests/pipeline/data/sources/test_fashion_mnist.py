"""Every way to find or fetch the images, with small stand-in files, fake tools and a local server."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import shutil
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.images import decode_image
from pipeline.data.sources import fashion_mnist
from pipeline.data.sources.fashion_mnist import CLASSES, PINS, Config, build
from pipeline.errors import ConfigError, DataError, IntegrityError, UnlearnError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([9, 0, 0, 3, 1, 2, 7], dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four small idx files with pins of their own, no installed package, no mirror, no tool, and an empty cache."""
    folder = tmp_path / "files"
    folder.mkdir()
    pins = {}
    for part, count in (("train", 5), ("t10k", 2)):
        start = 0 if part == "train" else 5
        rows = slice(start, start + count)
        contents = {
            f"{part}-images-idx3-ubyte": struct.pack(">4i", 2051, count, 28, 28) + PIXELS[rows].tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">2i", 2049, count) + LABELS[rows].tobytes(),
        }
        for name, content in contents.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            pins[name] = hashlib.sha256(content).hexdigest()
    assert set(pins) == set(PINS)
    monkeypatch.setattr(fashion_mnist, "PINS", pins)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", str(tmp_path / "installed"))
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def mirror(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A local server of the files; yields the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(files)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/", f"http://127.0.0.1:{server.server_port}/"))
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def _tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755 | stat.S_IXUSR)


def _debian(root: Path, files: Path) -> None:
    """Fakes of apt-get and dpkg-deb that fetch and unpack the stand-in files."""
    tree = f'"$3{root}/installed"'
    _tool(root / "bin", "apt-get", 'test "$1 $2" = "download dataset-fashion-mnist" && : > "$2_1.0_all.deb"')
    _tool(root / "bin", "dpkg-deb", f"/bin/mkdir -p {tree} && /bin/cp '{files}'/*.gz {tree}")


def _check(config: Config) -> None:
    source = build(config)
    training, unseen = list(source.training()), list(source.unseen())
    assert [item.key for item in training] == [f"train-{n:06d}" for n in range(len(training))]
    assert [item.key for item in unseen] == ["test-000000", "test-000001"]
    for number, item in zip([*range(len(training)), 5, 6], [*training, *unseen], strict=True):
        pixels = decode_image(item.image, size=28, channels=1, fit="crop", max_pixels=10**4, where=item.key)
        assert (pixels[..., 0] == PIXELS[number]).all() and item.label == LABELS[number]


def test_a_given_folder_is_used_packed_or_not(files: Path, tmp_path: Path) -> None:
    _check(Config(folder=str(files)))
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in files.iterdir():
        (plain / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    _check(Config(folder=str(plain)))
    assert not (tmp_path / "cache").exists()


def test_limits_take_the_first_images(files: Path) -> None:
    source = build(Config(folder=str(files), limit=3, unseen_limit=1))
    assert [item.label for item in source.training()] == [9, 0, 0] and len(list(source.unseen())) == 1
    assert len(list(build(Config(folder=str(files), limit=0)).training())) == 5


def test_the_installed_package_comes_before_the_cache_and_the_network(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "installed")
    _check(Config())
    assert not (tmp_path / "cache").exists()


def test_the_debian_package_is_fetched_once_into_the_cache(files: Path, tmp_path: Path) -> None:
    _debian(tmp_path, files)
    _check(Config())
    assert len(list((tmp_path / "cache" / "i2i-unlearn" / "fashion-mnist").iterdir())) == 4
    shutil.rmtree(tmp_path / "bin")
    _check(Config())


def test_a_machine_without_package_lists_fetches_private_ones(files: Path, tmp_path: Path) -> None:
    _debian(tmp_path, files)
    # Like apt-get on a fresh machine: nothing is known until an update has filled the lists that the call names.
    script = """
case "$*" in
  "download dataset-fashion-mnist") echo "Unable to locate package" >&2; exit 100;;
  *Dir::State::Lists=*" update") : > "${2#Dir::State::Lists=}/filled";;
  *Dir::State::Lists=*" download dataset-fashion-mnist")
    test -e "${2#Dir::State::Lists=}/filled" && : > dataset-fashion-mnist_1.0_all.deb;;
  *) exit 99;;
esac"""
    _tool(tmp_path / "bin", "apt-get", script)
    _check(Config())
    assert (tmp_path / "cache").exists()


def test_without_debian_a_mirror_serves(files: Path, tmp_path: Path, mirror: list[str]) -> None:
    _tool(tmp_path / "bin", "apt-get", "echo 'no such package' >&2; exit 100")
    _check(Config(cache=str(tmp_path / "elsewhere")))
    assert sorted(mirror) == sorted(f"/{name}.gz" for name in fashion_mnist.PINS)
    assert (tmp_path / "elsewhere" / "fashion-mnist").is_dir() and not (tmp_path / "cache").exists()


def test_a_mirror_with_other_bytes_is_refused_and_nothing_is_kept(files: Path, tmp_path: Path, mirror: list[str]) -> None:
    (files / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"forged"))
    with pytest.raises(DataError, match="its sha256 differs"):
        list(build(Config()).training())
    assert not (tmp_path / "cache").exists()


def test_a_damaged_debian_package_is_refused_and_nothing_is_kept(files: Path, tmp_path: Path) -> None:
    _debian(tmp_path, files)
    (files / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"apt-get download: .*no train-labels"):
        list(build(Config()).training())
    assert not (tmp_path / "cache").exists()


def test_where_nothing_works_one_message_names_all_three_ways(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(build(Config()).training())
    text = str(caught.value)
    assert "no apt-get on this machine" in text and "HTTPS: http://127.0.0.1:9/" in text
    for way in ("source.folder=FOLDER", "install the Debian package dataset-fashion-mnist", "allow HTTPS"):
        assert way in caught.value.cure
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["other content", "cut gzip", "missing"])
def test_bad_files_are_named(files: Path, damage: str) -> None:
    path = files / "train-images-idx3-ubyte.gz"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(gzip.compress(b"x") if damage == "other content" else path.read_bytes()[:-20])
    with pytest.raises(UnlearnError, match="train-images-idx3-ubyte") as caught:
        list(build(Config(folder=str(files))).training())
    assert isinstance(caught.value, DataError if damage == "missing" else IntegrityError) and caught.value.cure


def test_identity_needs_no_files_and_follows_the_limits() -> None:
    assert build(Config(folder="/nowhere")).identity() == build(Config()).identity()
    assert build(Config(limit=5)).identity() != build(Config()).identity()
    with pytest.raises(ConfigError, match="limit"):
        build(Config(limit=-1))


REAL = next((p for p in ("/usr/share/datasets/fashion-mnist", os.environ.get("FASHION_MNIST", "")) if p and Path(p).is_dir()), "")


@pytest.mark.skipif(not REAL, reason="the real files are not installed; name their folder in FASHION_MNIST")
def test_the_real_files_have_the_pinned_digests() -> None:
    source = build(Config(folder=REAL, limit=0))
    labels = [item.label for item in source.unseen()]
    assert len(labels) == 10_000 and np.bincount(labels).tolist() == [1000] * len(CLASSES)
    assert next(source.training()).label == CLASSES.index("Ankle boot")
