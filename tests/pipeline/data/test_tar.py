"""The walk: the same members, places and bytes as Python's tarfile finds, whatever the dialect and the block size."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Iterator
from typing import BinaryIO, cast

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tar as module
from pipeline.data.tar import TarReader
from pipeline.data.tar_headers import TarFault
from tests.support.shards import END, entry, header

SIZES = st.one_of(st.integers(0, 3000), st.sampled_from([0, 1, 511, 512, 513, 1024, 5120]))
LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
NAMES = st.one_of(
    st.text(LETTERS, min_size=1, max_size=20),
    st.text("ab/é€.", min_size=90, max_size=300),
    st.sampled_from(["d" * 99 + "/k.png", "d" * 100, "d" * 101, "é" * 50, "é" * 51, "a/" * 70 + "k.png"]),
).filter(lambda name: not name.endswith("/"))


def walk(content: bytes | BinaryIO) -> tuple[list[tuple[str, int, int, int, bytes]], str, int]:
    """Name, start, offset, size and digest of each file; then digest and size of all that was read."""
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    with TarReader(stream) as tar:
        found = [(m.name, m.start, m.offset, m.size, tar.digest(m)) for m in tar if m.kind == "file"]
        return found, tar.sha256, tar.bytes


def by_tarfile(content: bytes) -> list[tuple[str, int, int, int, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [
            (i.name, i.offset, i.offset_data, i.size, hashlib.sha256(content[i.offset_data : i.offset_data + i.size]).digest())
            for i in tar
            if i.isreg()
        ]


@pytest.fixture(scope="module", params=[512, 700, 4096, 8 << 20])
def blocks(request: pytest.FixtureRequest) -> Iterator[int]:
    """Headers and contents that end at, before and after the end of what is read at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READ_BYTES", request.param)
        yield request.param


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.tuples(NAMES, SIZES, st.floats(0, 2e9)), max_size=6),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    seed=st.integers(0, 255),
)
def test_finds_what_tarfile_wrote(blocks: int, members: list[tuple[str, int, float]], format: int, seed: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, size, mtime in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, mtime  # type: ignore[assignment]
            try:
                tar.addfile(info, io.BytesIO(bytes([seed]) * size))
            except ValueError:
                continue  # USTAR has no room for this name
    content = out.getvalue()
    found, sha256, count = walk(content)
    assert found == by_tarfile(content)
    assert (sha256, count) == (hashlib.sha256(content).hexdigest(), len(content))


@settings(max_examples=20, deadline=None)
@given(images=st.lists(st.binary(max_size=1500), max_size=5), key=st.text("ab/é", min_size=1, max_size=120))
def test_finds_what_webdataset_wrote(images: list[bytes], key: str) -> None:
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"{key}{number}", "png": image, "cls": b"7", "json": b"{}"})
    assert walk(out.getvalue())[0] == by_tarfile(out.getvalue())


def test_a_stream_that_returns_less_than_it_is_asked_for(blocks: int) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(cast(int, size), 333))

    content = entry(b"a.png", b"x" * 5000) + entry(b"b.png", b"y" * 511) + END
    assert walk(Slow(content)) == walk(content)
    assert [item[0] for item in walk(content)[0]] == ["a.png", "b.png"]


def test_members_that_nobody_reads_are_passed_over(blocks: int) -> None:
    content = entry(b"a.png", b"x" * 5000) + entry(b"b.png", b"y" * 511) + END
    with TarReader(io.BytesIO(content)) as tar:
        assert [(member.name, member.start) for member in tar] == [("a.png", 0), ("b.png", 512 + 5120)]
        assert tar.sha256 == hashlib.sha256(content).hexdigest()


class Endless(io.RawIOBase):
    """A header and then `count` bytes of a pattern, without holding them."""

    def __init__(self, head: bytes, count: int, tail: bytes) -> None:
        self.head, self.left, self.tail = head, count, tail

    def read(self, size: int = -1) -> bytes:
        if self.head:
            part, self.head = self.head[:size], self.head[size:]
            return part
        if self.left:
            part = b"z" * min(size, self.left)
            self.left -= len(part)
            return part
        part, self.tail = self.tail[:size], self.tail[size:]
        return part


@pytest.mark.parametrize("read", [True, False])
def test_memory_does_not_grow_with_a_member(read: bool) -> None:
    size = 1 << 28
    tracemalloc.start()
    with TarReader(cast(BinaryIO, Endless(header(b"a.png", size), size, END))) as tar:
        for member in tar:
            assert not read or len(tar.digest(member)) == 32
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tar.bytes == 512 + size + 1024
    assert peak < 6 * module.READ_BYTES


def test_after_a_fault_the_rest_is_still_read() -> None:
    content = entry(b"a.png", b"x" * 700) + b"?" * 5120 + END
    with TarReader(io.BytesIO(content)) as tar:
        with pytest.raises(TarFault, match="byte 1536"):
            list(tar)
        tar.drain()
        assert (tar.sha256, tar.bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_fault_of_the_storage_is_handed_on() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        walk(Broken())
