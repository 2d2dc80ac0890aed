"""Reading one shard: the facts of good ones, a named refusal or a place in quarantine for each kind of bad sample."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.shards import Fault, copy_sample, image_position, read_shard
from pipeline.errors import DataError, StorageError
from tests.pipeline.data.tars import picture, sample, write_tar


def test_a_good_shard_gives_samples_that_locate_their_images(tmp_path: Path) -> None:
    members = [*sample("a/one", 3, 1), ("a/one.json", b"{}"), ("two.JPG", b"jpeg bytes"), ("two.cls", b" 7\n")]
    uri = write_tar(tmp_path / "s.tar", members)
    samples, ref, faults = read_shard(uri)
    assert faults == () and read_shard(uri, on_error="quarantine") == (samples, ref, ())
    content = Path(uri).read_bytes()
    assert [(s.key, s.ext, s.label) for s in samples] == [("a/one", "png", 3), ("two", "jpg", 7)]
    for found, image in zip(samples, (picture(1), b"jpeg bytes"), strict=True):
        assert content[found.offset : found.offset + found.size] == image
        assert found.sha256 == hashlib.sha256(image).digest()
        with open(uri, "rb") as stream:
            copied = copy_sample(found, stream)
        assert copied[image_position(found) :].startswith(image)
    assert (ref.sha256, ref.bytes, ref.samples) == (hashlib.sha256(content).hexdigest(), len(content), 2)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_dialect_are_read_and_copied_with_their_headers(tmp_path: Path, format: int) -> None:
    key = "folder-of-many-letters/" * 5 + "k" * 60
    uri = write_tar(tmp_path / "s.tar", sample(key, 1), format=format)
    samples = read_shard(uri)[0]
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


def test_a_shard_in_an_object_store_reads_like_a_local_one(tmp_path: Path) -> None:
    local = write_tar(tmp_path / "s.tar", [member for n in range(20) for member in sample(f"k{n}", n, n)])
    fsspec.filesystem("memory").pipe_file("/shards/s.tar", Path(local).read_bytes())
    here, there = read_shard(local), read_shard("memory://shards/s.tar")
    assert here[0] == there[0] and here[1].sha256 == there[1].sha256


def test_a_shard_that_is_not_there_is_no_fault_of_its_content(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not found"):
        read_shard(str(tmp_path / "none.tar"), on_error="quarantine")


BAD = {
    "no image": ([("k.cls", b"1")], "key 'k': no image"),
    "no label": ([("k.png", picture(0))], "key 'k': no label"),
    "two images": ([("k.png", picture(0)), ("k.jpg", b"x"), ("k.cls", b"1")], "key 'k': two images"),
    "same member twice": ([*sample("k", 1), ("k.cls", b"1")], "key 'k': two members .cls"),
    "same member in capitals": ([*sample("k", 1), ("k.CLS", b"1")], "key 'k': two members .cls"),
    "label is text": ([("k.png", picture(0)), ("k.cls", b"cat")], "key 'k': label b'cat' is not an integer"),
    "label is negative": ([("k.png", picture(0)), ("k.cls", b"-1")], "key 'k': label b'-1' is not an integer"),
    "label is a fraction": ([("k.png", picture(0)), ("k.cls", b"1.0")], "key 'k': label b'1.0' is not an integer"),
    "label is empty": ([("k.png", picture(0)), ("k.cls", b"")], "key 'k': label b'' is not an integer"),
    "label is long": ([("k.png", picture(0)), ("k.cls", b" " * 5000)], "key 'k': label b'' is not an integer"),
    "second dot": ([*sample("k", 1), ("k.meta.json", b"{}")], "key 'k': member of unknown kind .meta.json"),
    "no extension": ([("README", b"x")], "key 'README': no extension"),
    "hidden file": ([(".DS_Store", b"x")], "key '.DS_Store': no extension"),
    "hidden file in a folder": ([("b/._k.png", b"x")], "key 'b/': member of unknown kind ._k.png"),
    "image of no bytes": ([("k.png", b""), ("k.cls", b"1")], "key 'k': the image .png is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_refused_by_name_or_left_out_and_listed(tmp_path: Path, case: str) -> None:
    members, message = BAD[case]
    uri = write_tar(tmp_path / "bad.tar", [*sample("a", 0), *members, *sample("z", 2)])
    with pytest.raises(DataError) as caught:
        read_shard(uri)
    assert caught.value.message.startswith(f"{uri}: {message}") and caught.value.cure
    samples, ref, (fault,) = read_shard(uri, on_error="quarantine")
    assert [sample.key for sample in samples] == ["a", "z"]
    assert (ref.samples, ref.sha256) == (2, hashlib.sha256(Path(uri).read_bytes()).hexdigest())
    assert fault.error().args == caught.value.args and fault.cure == caught.value.cure
    assert fault.key == message.split("'")[1]


def test_of_two_samples_with_one_key_the_later_is_the_fault(tmp_path: Path) -> None:
    uri = write_tar(tmp_path / "s.tar", [*sample("k", 1, 1), *sample("m", 1, 2), *sample("k", 2, 3)])
    with pytest.raises(DataError, match="key 'k': the key comes twice"):
        read_shard(uri)
    samples, _, (fault,) = read_shard(uri, on_error="quarantine")
    assert [(sample.key, sample.label) for sample in samples] == [("k", 1), ("m", 1)]
    assert fault == Fault(uri=uri, key="k", reason="the key comes twice", cure=fault.cure)


def test_interleaved_samples_are_all_set_aside(tmp_path: Path) -> None:
    """Readers that group by neighbours see four halves here, not two samples."""
    (a0, a1), (b0, b1) = sample("a", 1), sample("b", 2)
    uri = write_tar(tmp_path / "s.tar", [a0, b0, a1, b1, *sample("c", 3)])
    samples, _, faults = read_shard(uri, on_error="quarantine")
    assert [sample.key for sample in samples] == ["c"]
    assert [(fault.key, fault.reason) for fault in faults] == [
        ("a", "no image"),
        ("b", "no image"),
        ("a", "the key comes twice"),
        ("b", "the key comes twice"),
    ]


def test_a_member_without_key_does_not_break_the_sample_around_it(tmp_path: Path) -> None:
    first, second = sample("k", 1, 5)
    uri = write_tar(tmp_path / "s.tar", [first, ("README", b"hello"), second])
    (found,), _, (fault,) = read_shard(uri, on_error="quarantine")
    assert (fault.key, fault.reason) == ("README", "no extension")
    with open(uri, "rb") as stream:
        copied = copy_sample(found, stream)
    assert copied[image_position(found) :].startswith(picture(5)) and b"hello" not in copied


PARTS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["png", "jpg", "cls", "json", "pkl", "CLS"])), max_size=14)


@settings(max_examples=150, deadline=None)
@given(parts=PARTS)
def test_kept_samples_and_faults_account_for_every_member(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str]]
) -> None:
    uri = write_tar(tmp_path_factory.mktemp("s") / "s.tar", [(f"{key}.{ext}", b"7") for key, ext in parts])
    samples, ref, faults = read_shard(uri, on_error="quarantine")
    assert ref.samples == len(samples)
    with tarfile.open(uri) as tar:
        places = {info.offset: info.name.split(".")[0] for info in tar}
    kept = {start: sample.key for sample in samples for start in places if any(a <= start < b for a, b in sample.ranges)}
    assert all(places[start] == key for start, key in kept.items())
    left = [places[start] for start in sorted(places) if start not in kept]
    # A run of members with one key that were not kept is one fault.
    runs = [key for number, key in enumerate(left) if number == 0 or left[number - 1] != key]
    if not parts:
        assert [(fault.key, fault.reason) for fault in faults] == [("", "empty shard")]
    else:
        assert set(runs) == {fault.key for fault in faults} and len(faults) >= len(runs)
    if faults:
        with pytest.raises(DataError) as caught:
            read_shard(uri)
        assert caught.value.message == faults[0].error().message
    else:
        assert read_shard(uri)[0] == samples
