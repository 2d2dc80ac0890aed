"""One WebDataset shard: read it member by member, refuse what is wrong by name, and copy samples byte for byte.

A shard is a plain tar. A member's key is its path up to the first dot of the last path part, the rest is its
extension, as in WebDataset; members of one sample lie side by side. A sample holds one image (png, jpg, jpeg), one
`cls` with an integer, and at most one `json`, which is carried along unread. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from pipeline.errors import DataError
from pipeline.records import ShardRef, record
from pipeline.storage import HashingWriter, open_read

__all__ = ["IMAGE_EXTENSIONS", "Sample", "copy_sample", "finish_tar", "image_position", "read_shard"]

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg")
TAR_BLOCK = tarfile.BLOCKSIZE
TAR_RECORD = tarfile.RECORDSIZE
READ_BLOCK = 1 << 20
# WebDataset's own rule (`base_plus_ext`), so that any WebDataset reader forms the same samples.
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
LABEL = re.compile(rb"\s*(\d{1,6})\s*")
LONGEST_LABEL = 64


@record
class Sample:
    """One sample of a shard: `offset` and `size` locate the image's bytes, `sha256` is their digest, and `ranges` are
    the byte ranges (start, stop) of all its members with their tar headers."""

    key: str
    ext: str
    label: int
    offset: int
    size: int
    sha256: str
    ranges: tuple[tuple[int, int], ...]


class _Tap:
    """A stream that hashes what passes and remembers the last bytes, for a look at where the tar reader stopped."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.sha, self.count, self._tail = stream, hashlib.sha256(), 0, b""

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self.sha.update(block)
        self.count += len(block)
        # The tar reader asks for one record at a time, so two records always hold the header it read last.
        self._tail = (self._tail + block)[-2 * TAR_RECORD :]
        return block

    def block_at(self, offset: int) -> bytes:
        start = offset - (self.count - len(self._tail))
        return self._tail[start : start + TAR_BLOCK]


class _Open:
    """The sample being read: checks what joins it, and closes into a `Sample`."""

    def __init__(self, key: str, uri: str) -> None:
        self.key, self.uri = key, uri
        self._image: tuple[str, int, int, str] | None = None
        self._label: int | None = None
        self._extensions: set[str] = set()
        self._ranges: list[tuple[int, int]] = []

    def fault(self, message: str, cure: str) -> DataError:
        return DataError(f"{self.uri}: key '{self.key}': {message}", cure)

    def add(self, ext: str, info: tarfile.TarInfo, stream: Iterator[bytes]) -> None:
        if ext in self._extensions:
            raise self.fault(f"two members .{ext}", "a sample has one image, one .cls and at most one .json")
        self._extensions.add(ext)
        padded = -(-info.size // TAR_BLOCK) * TAR_BLOCK
        self._ranges.append((info.offset, info.offset_data + padded))
        if ext in IMAGE_EXTENSIONS:
            if self._image is not None:
                raise self.fault("two images in one sample", "give each image a key of its own")
            if info.size == 0:
                raise self.fault(f"the image .{ext} is empty", "restore the image or drop the sample")
            sha = hashlib.sha256()
            for block in stream:
                sha.update(block)
            self._image = (ext, info.offset_data, info.size, sha.hexdigest())
        elif ext == "cls":
            content = b"".join(stream) if info.size <= LONGEST_LABEL else b""
            match = LABEL.fullmatch(content)
            if match is None:
                raise self.fault(
                    f"label {content[:20]!r} is not an integer", "write a class number, 0 to 999999, as text in .cls"
                )
            self._label = int(match[1])
        elif ext != "json":
            raise self.fault(f"member of unknown kind .{ext}", "keep only png, jpg or jpeg, cls and json in a shard")

    def close(self) -> Sample:
        if self._image is None:
            raise self.fault("no image", "add .png or .jpg, or drop the sample")
        if self._label is None:
            raise self.fault("no label", "add .cls with the class number, or drop the sample")
        ext, offset, size, sha = self._image
        return Sample(key=self.key, ext=ext, label=self._label, offset=offset, size=size, sha256=sha, ranges=tuple(self._ranges))


def _split_name(info: tarfile.TarInfo, uri: str) -> tuple[str, str]:
    """Key and lower-case extension of a member. Raises DataError for a name that must not be in a shard."""
    name = info.name
    shown = name.encode("utf-8", "backslashreplace").decode()
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{uri}: member '{shown}': absolute path or '..'", "write the shard again with plain relative names")
    if shown != name:
        raise DataError(f"{uri}: member '{shown}': name is not UTF-8", "write the shard again with UTF-8 names")
    if not info.isreg() or info.issparse():
        raise DataError(f"{uri}: member '{shown}': a link, device or sparse file", "a shard holds plain files only")
    match = NAME.match(name)
    if match is None:
        raise DataError(f"{uri}: member '{shown}': no extension", "name members KEY.png, KEY.jpg, KEY.cls, KEY.json")
    return match[1], match[2].lower()


def _blocks(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None
    while block := stream.read(READ_BLOCK):
        yield block


def _samples(tar: tarfile.TarFile, uri: str) -> Iterator[Sample]:
    current: _Open | None = None
    seen: set[str] = set()
    for info in tar:
        if info.isdir():
            continue
        key, ext = _split_name(info, uri)
        if current is None or key != current.key:
            if current is not None:
                yield current.close()
            current = _Open(key, uri)
            if key in seen:
                raise current.fault("the key comes twice", "give each sample a key of its own, its members side by side")
            seen.add(key)
        current.add(ext, info, _blocks(tar, info))
    if current is not None:
        yield current.close()


def read_shard(uri: str) -> tuple[list[Sample], ShardRef]:
    """Read a whole shard once, hashing it and every image.

    Returns:
        Its samples in file order, and the shard's digest, size and number of samples.

    Raises:
        DataError: an empty, truncated or compressed shard, or a faulty sample; names shard and key.
    """
    with open_read(uri) as stream:
        tap = _Tap(stream)
        try:
            # mypy knows the stream modes only with a full IO object; tarfile needs no more than read().
            with tarfile.open(fileobj=tap, mode="r|", bufsize=TAR_RECORD) as tar:  # type: ignore[call-overload]
                samples = list(_samples(tar, uri))
                if tar.pax_headers:
                    raise DataError(f"{uri}: a global tar header", "write the shard again without global pax headers")
                stopped = tap.block_at(tar.offset)
        except tarfile.TarError as fault:
            if tap.count == 0:
                raise _empty(uri) from None
            raise DataError(f"{uri}: truncated, or not an uncompressed tar ({fault})", "restore or unpack the shard") from None
        if stopped != bytes(TAR_BLOCK):
            raise DataError(f"{uri}: truncated or damaged at byte {tar.offset}: no end of archive", "restore the shard")
        if not samples:
            raise _empty(uri)
        while tap.read(READ_BLOCK):
            pass
    ref = ShardRef(uri=uri, sha256=tap.sha.hexdigest(), bytes=tap.count, samples=len(samples), origin="original")
    return samples, ref


def _empty(uri: str) -> DataError:
    return DataError(f"{uri}: empty shard", "restore the shard, or take it off the list")


def image_position(sample: Sample) -> int:
    """Where the image's bytes begin in what `copy_sample` copies."""
    before = 0
    for start, stop in sample.ranges:
        if start <= sample.offset < stop:
            return before + sample.offset - start
        before += stop - start
    raise AssertionError("the image lies in one of its sample's ranges")


def copy_sample(sample: Sample, stream: BinaryIO) -> bytes:
    """All members of a sample with their tar headers, byte for byte, from its open shard."""
    parts: list[bytes] = []
    for start, stop in sample.ranges:
        stream.seek(start)
        parts.append(stream.read(stop - start))
    return b"".join(parts)


def finish_tar(out: HashingWriter, parts: Iterable[bytes]) -> int:
    """Write copied samples one after the other, then the end of archive, padded to a whole record as tar does.

    Returns:
        How many samples were written.
    """
    count = 0
    for part in parts:
        out.write(part)
        count += 1
    out.write(bytes(2 * TAR_BLOCK))
    out.write(bytes(-out.tell() % TAR_RECORD))
    return count
