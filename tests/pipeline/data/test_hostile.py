"""Shards made to mislead: refused by name, or set aside and listed; never run, never lost unseen, never without end."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tar
from pipeline.data.shards import Fault, Sample, read_shard
from pipeline.errors import DataError
from tests.support.shards import END, entry, good, header, pax, signed


class Bomb:
    """Unpickling this raises: nothing may."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was run')",)


def read_both(folder: Path, content: bytes) -> tuple[list[Sample], tuple[Fault, ...]]:
    """Samples and faults under `quarantine`, after a look that `stop` raises the first of them and nothing else."""
    path = folder / "shard.tar"
    path.write_bytes(content)
    samples, ref, faults = read_shard(str(path), on_error="quarantine")
    assert (ref.samples, ref.bytes, ref.sha256) == (len(samples), len(content), hashlib.sha256(content).hexdigest())
    assert all(fault.uri == str(path) and fault.reason and fault.cure for fault in faults)
    assert all(f"{fault.key}{fault.reason}{fault.cure}".isprintable() for fault in faults)
    if faults:
        with pytest.raises(DataError) as caught:
            read_shard(str(path))
        if any(fault.key == "" for fault in faults):
            assert len(faults) == 1 and samples == []
        else:
            assert caught.value.message == faults[0].error().message
    else:
        assert read_shard(str(path)) == (samples, ref, ())
    return samples, faults


SPARSE = entry(b"k.png", b"x" * 512, b"S")
SAMPLES = {
    "climbs out": (entry(b"../k.png", b"x"), "../k", "absolute path or '..'"),
    "climbs out from within": (entry(b"a/../../k.png", b"x"), "a/../../k", "absolute path or '..'"),
    "climbs out by a prefix": (entry(b"k.png", b"x", prefix=b"../.."), "../../k", "absolute path or '..'"),
    "climbs out by a pax path": (pax((b"path", b"../k.png")) + entry(b"k.png", b"x"), "../k", "absolute path or '..'"),
    "climbs out by a long name": (
        entry(b"././@LongLink", b"../k.png\0", b"L") + entry(b"k.png"),
        "../k",
        "absolute path or '..'",
    ),
    "folder that climbs out": (entry(b"../../a/", kind=b"5"), "../../a/", "absolute path or '..'"),
    "absolute": (entry(b"/etc/k.png", b"x"), "/etc/k", "absolute path"),
    "absolute folder": (entry(b"/etc/", kind=b"5"), "/etc/", "absolute path"),
    "hard link": (entry(b"k.png", kind=b"1"), "k", "member .png is a hard link"),
    "symbolic link": (entry(b"k.png", kind=b"2"), "k", "member .png is a symbolic link"),
    "link with a long target": (entry(b"././@LongLink", b"t" * 200, b"K") + entry(b"k.png", kind=b"2"), "k", "symbolic link"),
    "character device": (entry(b"k.png", kind=b"3"), "k", "member .png is a character device"),
    "block device": (entry(b"k.png", kind=b"4"), "k", "member .png is a block device"),
    "named pipe": (entry(b"k.png", kind=b"6"), "k", "member .png is a named pipe"),
    "link without extension": (entry(b"README", kind=b"2"), "README", "a symbolic link"),
    "unknown kind": (entry(b"k.png", kind=b"V"), "k", "member .png is an entry of unknown kind"),
    "not UTF-8": (entry(b"k\xff.png", b"x"), "k\\udcff", "not UTF-8"),
    "pax name that is not UTF-8": (
        pax((b"hdrcharset", b"BINARY"), (b"path", b"\xe9.png")) + entry(b"x.png", b"x"),
        "\\udce9",
        "not UTF-8",
    ),
    "zero byte in a name": (pax((b"path", b"k.png\0.cls")) + entry(b"k.png", b"x"), "k", "zero byte"),
    "no name": (entry(b"", b"x"), "(no name)", "no extension"),
    "control characters": (entry(b"k\x1b[2J\n\r.exe", b"x"), "k\\x1b[2J\\n\\r", "unknown kind .exe"),
    "text turned around": (entry("k\u202e.exe".encode(), b"x"), "k\\u202e", "unknown kind .exe"),
    "extension of control characters": (entry(b"k.\x1b[31m", b"x"), "k", "unknown kind .\\x1b[31m"),
    "label of control characters": (entry(b"k.cls", b"\x1b[31m\n"), "k", "label b'\\x1b[31m\\n' is not"),
    "very long name": (pax((b"path", b"k" * 5000)) + entry(b"k", b"x"), "k" * 200 + "…", "no extension"),
} | {
    f"pickle as .{ext}": (entry(f"k.{ext}".encode(), pickle.dumps(Bomb())), "k", f"member of unknown kind .{ext}")
    for ext in ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "ten", "mp", "cbor", "cls2", "__key__", "")
}


@pytest.mark.parametrize("case", SAMPLES)
def test_a_hostile_member_is_set_aside_and_the_rest_is_read(tmp_path: Path, case: str) -> None:
    content, key, reason = SAMPLES[case]
    samples, (fault,) = read_both(tmp_path, good(b"a") + content + good(b"z") + END)
    assert [sample.key for sample in samples] == ["a", "z"]
    assert fault.key == key and reason in fault.reason


HUGE = b"\x80" + (1 << 80).to_bytes(11, "big")
MIDDLE = good(b"k")
WHOLE = {
    "zero bytes": (b"", "empty shard"),
    "no member": (END, "empty shard"),
    "folders only": (entry(b"a/", kind=b"5") + END, "empty shard"),
    "less than a block": (b"k.png", "truncated: the file ends at byte 5"),
    "text": (b"<Error><Code>NoSuchKey</Code></Error>".ljust(2048), "not a tar"),
    "no end of archive": (good(b"a"), "truncated: the file ends at byte 2048"),
    "size beyond the end": (good(b"a") + header(b"k.png", 1 << 30) + END, "before the end of k.png"),
    "huge size": (good(b"a") + header(b"k.png", HUGE) + MIDDLE + END, "before the end of k.png"),
    "huge size of a member that is refused": (good(b"a") + header(b"k.pkl", HUGE) + MIDDLE + END, "before the end of k.pkl"),
    "negative size": (good(b"a") + header(b"k.png", b"\xff" * 12) + MIDDLE + END, "says -1 bytes"),
    "negative size that goes back": (good(b"a") + header(b"k.png", b"\xff" * 10 + b"\xfc\x00") + END, "says -1024 bytes"),
    "size of letters": (good(b"a") + header(b"k.png", b"0xffffffffff") + END, "not a number"),
    "two sizes": (pax((b"size", b"512")) + entry(b"k.png", b"x") + END, "two sizes"),
    "size hidden from readers of pax": (pax((b"size", b"0")) + entry(b"k.png", MIDDLE) + END, "two sizes"),
    "negative pax size": (pax((b"size", b"-512")) + entry(b"k.png") + END, "two sizes"),
    "link with content": (good(b"a") + entry(b"k.png", MIDDLE, b"2") + good(b"z") + END, "a symbolic link of 2048 bytes"),
    "folder with content": (good(b"a") + entry(b"k/", MIDDLE, b"5") + good(b"z") + END, "a folder of 2048 bytes"),
    "old folder with content": (good(b"a") + entry(b"k/", MIDDLE, b"\0") + END, "a folder of 2048 bytes"),
    "device with content": (good(b"a") + entry(b"k", b"x", b"3") + END, "a character device of 1 bytes"),
    "unknown kind with content": (good(b"a") + entry(b"k", b"x", b"M") + END, "unknown kind b'M'"),
    "GNU sparse file": (good(b"a") + SPARSE + END, "a sparse file at byte 2048: 'k.png'"),
    "pax sparse file": (
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.name", b"../k.png")) + entry(b"k.png", b"x") + END,
        "sparse",
    ),
    "global header": (pax((b"path", b"k.png"), kind=b"g") + good(b"a") + END, "a global pax header at byte 0"),
    "global header later": (
        good(b"a") + pax((b"comment", b"x"), kind=b"g") + good(b"z") + END,
        "a global pax header at byte 2048",
    ),
    "wrong checksum": (good(b"a") + MIDDLE.replace(b"k.png", b"q.png") + END, "no tar header at byte 3072, its checksum"),
    "garbage between": (good(b"a") + b"?" * 512 + good(b"z") + END, "no tar header at byte 2048"),
    "two joined tars": (good(b"a") + END + good(b"z") + END, "more data at byte 3072"),
    "one byte after the end": (good(b"a") + END + bytes(9000) + b"x", "more data at byte 12072"),
    "pax header and no member": (good(b"a") + pax((b"path", b"k.png")) + END, "no member after the extended header"),
    "pax header that lies": (good(b"a") + entry(b"p", b"99 path=k.png\n", b"x") + good(b"z") + END, "byte 2048 is damaged"),
    "pax record of length 0": (good(b"a") + entry(b"p", b"0 path=k.png\n", b"x") + good(b"z") + END, "byte 2048 is damaged"),
    "pax header of a gigabyte": (good(b"a") + header(b"p", 1 << 30, b"x") + END, "says 1073741824 bytes"),
    "pax record in the padding": (
        header(b"p", 13, b"x") + b"13 path=k.png\n13 path=q.png\n"[1:].ljust(512, b"\0") + entry(b"k.png") + END,
        "longer than it says",
    ),
    "two pax headers": (pax((b"path", b"a.png")) * 2 + entry(b"k.png") + END, "two extended headers"),
    "pax header and long name": (
        pax((b"path", b"a.png")) + entry(b"L", b"b.png\0", b"L") + entry(b"k.png") + END,
        "two extended headers",
    ),
    "gzip": (gzip.compress(good(b"a") + END), "packed with gzip"),
    "bzip2": (bz2.compress(good(b"a") + END), "packed with bzip2"),
    "xz": (lzma.compress(good(b"a") + END), "packed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "packed with zstd"),
    "zip": (b"PK\x03\x04" + bytes(600), "packed with zip"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_shard_that_cannot_be_walked_is_set_aside_as_a_whole(tmp_path: Path, case: str) -> None:
    content, reason = WHOLE[case]
    samples, (fault,) = read_both(tmp_path, content)
    assert samples == [] and fault.key == "" and reason in fault.reason


def test_a_shard_set_aside_has_the_digest_and_size_of_its_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "READ_BYTES", 1024)
    samples, (fault,) = read_both(tmp_path, good(b"a") + b"?" * 512 + bytes(range(256)) * 100)
    assert samples == [] and "byte 2048" in fault.reason


@pytest.mark.parametrize(("eaten", "left"), [(1, None), (2, "no label"), (3, None)])
def test_a_size_that_takes_in_the_next_headers_breaks_the_sample_they_were_of(
    tmp_path: Path, eaten: int, left: str | None
) -> None:
    """`k.png` claims so many blocks of the sample after it. Where it ends within a member, the shard is damaged there."""
    liar = entry(b"k.cls", b"1") + header(b"k.png", 512 * (1 + eaten)) + b"image".ljust(512, b"\0")
    samples, (fault,) = read_both(tmp_path, good(b"a") + liar + good(b"m") + good(b"z") + END)
    if left is None:
        assert (samples, fault.key) == ([], "") and "no tar header at byte" in fault.reason
    else:
        assert [sample.key for sample in samples] == ["a", "k", "z"] and (fault.key, fault.reason) == ("m", left)


@pytest.mark.parametrize(
    "name", ["pipe:touch ran", "s3:||x", "a b", "$(touch ran)", "-rf", "C:\\k", "a;b", "é", "k" * 250, "~root/k"]
)
def test_any_other_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    content = b"".join(
        pax((b"path", f"{name}{end}".encode())) + entry(b"short", body) for end, body in ((".cls", b"1"), (".png", b"image"))
    )
    (found,), faults = read_both(tmp_path, content + END)
    assert found.key == name and not faults and [path.name for path in tmp_path.iterdir()] == ["shard.tar"]


ENTRIES = [
    entry(b"a.cls", b"1"),
    entry(b"a.png", b"image"),
    pax((b"mtime", b"1.5")) + entry(b"b.jpg", b"x" * 700),
    entry(b"b.cls", b"2"),
    entry(b"./@L", b"c.png\0", b"L") + entry(b"short.png", b"y" * 600),
    entry(b"c.cls", b"3"),
]
SOUND = b"".join(ENTRIES)


def test_truncation_at_every_block_and_around_it_is_seen(tmp_path: Path) -> None:
    assert [sample.key for sample in read_both(tmp_path, SOUND + END)[0]] == ["a", "b", "c"]
    for place in range(0, len(SOUND) + 1, 512):
        for cut in {max(place - 1, 0), place, place + 1, place + 511}:
            samples, (fault,) = read_both(tmp_path, (SOUND + END)[:cut])
            assert samples == [] and fault.key == "" and ("truncated" in fault.reason or cut == 0)


def test_a_flipped_bit_anywhere_is_a_fault_or_changes_no_name_place_or_label(tmp_path: Path) -> None:
    content = SOUND + END
    sound = {sample.key: (sample.offset, sample.size, sample.ranges) for sample in read_both(tmp_path, content)[0]}
    for place in range(0, len(content), 23):
        flipped = content[place] ^ (1 << place % 8)
        samples, faults = read_both(tmp_path, content[:place] + bytes([flipped]) + content[place + 1 :])
        assert faults or {sample.key: (sample.offset, sample.size, sample.ranges) for sample in samples} == sound


def by_tarfile(content: bytes) -> list[tuple[str, int, int, bytes]]:
    """Name, start, place and bytes of every member that is no folder, as far as Python's tarfile reads."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return [
            (info.name, info.offset, info.offset_data, content[info.offset_data : info.offset_data + info.size])
            for info in tar
            if not info.isdir()
        ]


PLACES = st.one_of(st.integers(0, len(SOUND) + 1024), st.integers(0, len(SOUND) // 512).map(lambda block: block * 512))
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "copy block", "drop block", "set in header"]),
        PLACES,
        st.one_of(
            st.binary(min_size=1, max_size=13), st.just(bytes(512)), st.sampled_from([b"7", b"1", b"5", b"x", b"L", b"g", b"\0"])
        ),
    ),
    max_size=3,
)
FIELDS = (0, 1, 3, 100, 124, 130, 134, 135, 136, 156, 257, 263, 329, 345)


def edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, patch in edits:
        block = place // 512 * 512
        if kind == "set":
            content = content[:place] + patch + content[place + len(patch) :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "insert":
            content = content[:place] + patch + content[place:]
        elif kind == "copy block":
            content = content[:block] + content[block : block + 512] + content[block:]
        elif kind == "drop block":
            content = content[:block] + content[block + 512 :]
        elif len(content) >= block + 512:
            at = FIELDS[place % len(FIELDS)]
            head = bytearray(content[block : block + 512])
            head[at : at + len(patch)] = patch
            content = content[:block] + signed(bytes(head[:512])) + content[block + 512 :]
    return content


@settings(max_examples=400, deadline=2000)
@given(order=st.lists(st.integers(0, len(ENTRIES) - 1), max_size=8), edits=EDITS)
def test_whatever_is_done_to_a_shard_it_is_a_fault_or_what_tarfile_reads(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], edits: list[tuple[str, int, bytes]]
) -> None:
    content = edited(b"".join(ENTRIES[number] for number in order) + END, edits)
    samples, faults = read_both(tmp_path_factory.getbasetemp(), content)
    if any(fault.key == "" for fault in faults):
        return
    members = by_tarfile(content)
    kept = set()
    for sample in samples:
        ranges = sample.ranges
        inside = {name: (place, body) for name, start, place, body in members if any(a <= start < b for a, b in ranges)}
        kept |= {place for place, _ in inside.values()}
        (image,) = [name for name in inside if name[len(sample.key) + 1 :].lower() == sample.ext]
        (label,) = [name for name in inside if name[len(sample.key) + 1 :].lower() == "cls"]
        assert inside[image][0] == sample.offset and len(inside[image][1]) == sample.size
        assert hashlib.sha256(inside[image][1]).digest() == sample.sha256
        assert int(inside[label][1]) == sample.label
    lost = [name for name, _, place, _ in members if place not in kept]
    assert bool(lost) == bool(faults)
    assert all(any(name.startswith(fault.key) or not name.isprintable() for fault in faults) for name in lost if name)
