"""Reading one shard: the facts of good ones, and a named refusal for each kind of bad one."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.shards import copy_sample, image_position, read_shard
from pipeline.errors import DataError
from tests.pipeline.data.tars import picture, sample, write_tar


def test_a_good_shard_gives_samples_that_locate_their_images(tmp_path: Path) -> None:
    members = [*sample("a/one", 3, 1), ("a/one.json", b"{}"), ("two.JPG", b"jpeg bytes"), ("two.cls", b" 7\n")]
    uri = write_tar(tmp_path / "s.tar", members)
    samples, ref = read_shard(uri)
    content = Path(uri).read_bytes()
    assert [(s.key, s.ext, s.label) for s in samples] == [("a/one", "png", 3), ("two", "jpg", 7)]
    for found, image in zip(samples, (picture(1), b"jpeg bytes"), strict=True):
        assert content[found.offset : found.offset + found.size] == image
        assert found.sha256 == hashlib.sha256(image).hexdigest()
        with open(uri, "rb") as stream:
            copied = copy_sample(found, stream)
        assert copied[image_position(found) :].startswith(image)
    assert (ref.sha256, ref.bytes, ref.samples) == (hashlib.sha256(content).hexdigest(), len(content), 2)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_dialect_are_read_and_copied_with_their_headers(tmp_path: Path, format: int) -> None:
    key = "folder-of-many-letters/" * 5 + "k" * 60
    uri = write_tar(tmp_path / "s.tar", sample(key, 1), format=format)
    samples, _ = read_shard(uri)
    with open(uri, "rb") as stream:
        copied = copy_sample(samples[0], stream) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(copied)) as tar:
        assert tar.getnames() == [f"{key}.cls", f"{key}.png"]


def test_folders_in_a_tar_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        for name, content in sample("folder/a", 1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert [s.key for s in read_shard(str(path))[0]] == ["folder/a"]


BAD = {
    "no image": ([("k.cls", b"1")], "key 'k': no image"),
    "no label": ([("k.png", picture(0))], "key 'k': no label"),
    "two images": ([("k.png", picture(0)), ("k.jpg", b"x"), ("k.cls", b"1")], "key 'k': two images"),
    "same member twice": ([*sample("k", 1), ("k.cls", b"1")], "key 'k': two members .cls"),
    "key comes back": ([*sample("k", 1), *sample("m", 1), *sample("k", 1)], "key 'k': the key comes twice"),
    "label is text": ([("k.png", picture(0)), ("k.cls", b"cat")], "key 'k': label b'cat' is not an integer"),
    "label is negative": ([("k.png", picture(0)), ("k.cls", b"-1")], "label b'-1' is not an integer"),
    "label is a fraction": ([("k.png", picture(0)), ("k.cls", b"1.0")], "is not an integer"),
    "label is long": ([("k.png", picture(0)), ("k.cls", b" " * 5000)], "is not an integer"),
    "pickle": ([*sample("k", 1), ("k.pickle", b"\x80")], "key 'k': member of unknown kind .pickle"),
    "second dot": ([*sample("k", 1), ("k.meta.json", b"{}")], "key 'k': member of unknown kind .meta.json"),
    "no extension": ([("README", b"x")], "member 'README': no extension"),
    "absolute": ([("/etc/k.png", b"x")], "member '/etc/k.png': absolute"),
    "traversal": ([("a/../../k.png", b"x")], "'..'"),
    "not UTF-8": ([("k\udcff.png", b"x")], "name is not UTF-8"),
    "image of no bytes": ([("k.png", b""), ("k.cls", b"1")], "key 'k': the image .png is empty"),
    "nothing": ([], "empty shard"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_refused_by_name(tmp_path: Path, case: str) -> None:
    members, message = BAD[case]
    dialect = tarfile.GNU_FORMAT if case == "not UTF-8" else tarfile.PAX_FORMAT
    uri = write_tar(tmp_path / "bad.tar", members, format=dialect)
    with pytest.raises(DataError) as caught:
        read_shard(uri)
    assert message in str(caught.value) and uri in str(caught.value) and caught.value.cure


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("k.png")
        info.type, info.linkname = kind, "target"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"'k\.png': a link, device"):
        read_shard(str(path))


def test_files_that_are_no_tar_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="empty shard"):
        read_shard(str(empty))
    packed = write_tar(tmp_path / "s.tar.gz", sample("k", 1), mode="w:gz")
    with pytest.raises(DataError, match="not an uncompressed tar"):
        read_shard(packed)
    with pytest.raises(DataError, match="global"):
        with tarfile.open(tmp_path / "g.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
            for name, content in sample("k", 1):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        read_shard(str(tmp_path / "g.tar"))


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1))
def test_a_shard_cut_anywhere_before_its_end_block_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    uri = write_tar(folder / "s.tar", [m for n in range(3) for m in sample(f"k{n}", n, n)])
    content = Path(uri).read_bytes()
    end = len(content.rstrip(b"\0"))
    last = -(-end // 512) * 512
    Path(uri).write_bytes(content[: int(share * (last + 511))])
    with pytest.raises(DataError):
        read_shard(uri)


def test_a_flipped_byte_is_a_named_fault_or_another_digest(tmp_path: Path) -> None:
    uri = write_tar(tmp_path / "s.tar", [m for n in range(3) for m in sample(f"k{n}", n, n)])
    content = Path(uri).read_bytes()
    whole = read_shard(uri)[1]
    rng = random.Random(1)
    for _ in range(300):
        place = rng.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        Path(uri).write_bytes(bytes(damaged))
        try:
            assert read_shard(uri)[1].sha256 != whole.sha256
        except DataError as fault:
            assert uri in fault.message
