"""One WebDataset shard: read it member by member, refuse what is wrong by name, and copy samples byte for byte.

A shard is a plain tar. A member's key is its path up to the first dot of the last path part, the rest is its
extension, as in WebDataset; members of one sample lie side by side. A sample holds one image (png, jpg, jpeg), one
`cls` with an integer, and at most one `json`, which is carried along unread. Names are only names: nothing is ever
unpickled, extracted, opened or run by them. Whether an image can be decoded, and how large it is, the decoder judges.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Literal

from pipeline.data.tar import Member, TarReader
from pipeline.data.tar_headers import BLOCK, TarFault, shown
from pipeline.errors import DataError
from pipeline.records import ShardRef, record
from pipeline.storage import HashingWriter, open_read

__all__ = ["IMAGE_EXTENSIONS", "Fault", "Sample", "copy_sample", "finish_tar", "image_position", "read_shard"]

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg")
TAR_RECORD = 20 * BLOCK
# WebDataset's own rule (`base_plus_ext`), so that any WebDataset reader forms the same samples.
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
LABEL = re.compile(rb"\s*(\d{1,6})\s*")
LONGEST_LABEL = 64
SURROGATE = re.compile("[\ud800-\udfff]")


@record
class Sample:
    """One sample of a shard: `offset` and `size` locate the image's bytes, `sha256` is their digest (32 bytes), and
    `ranges` are the byte ranges (start, stop) of all its members with their tar headers."""

    key: str
    ext: str
    label: int
    offset: int
    size: int
    sha256: bytes
    ranges: tuple[tuple[int, int], ...]


@record
class Fault:
    """What was set aside of a shard, and why: a sample by its key, a member without a key by its name, both as they
    are shown in messages; the whole shard where `key` is empty."""

    uri: str
    key: str
    reason: str
    cure: str

    def error(self) -> DataError:
        """The fault as an error that names shard and key."""
        where = f"{self.uri}: key '{self.key}'" if self.key else self.uri
        return DataError(f"{where}: {self.reason}", self.cure)


class _Open:
    """The sample being read: takes its members, keeps its first fault, and closes into a Sample or a Fault."""

    __slots__ = ("_extensions", "_fault", "_image", "_label", "_ranges", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self._fault: tuple[str, str] | None = None
        self._image: tuple[str, Member, bytes] | None = None
        self._label: int | None = None
        self._extensions: list[str] = []
        self._ranges: list[tuple[int, int]] = []

    def refuse(self, reason: str, cure: str) -> None:
        self._fault = self._fault or (reason, cure)

    def add(self, ext: str, member: Member, tar: TarReader) -> None:
        if ext in self._extensions:
            return self.refuse(f"two members .{shown(ext)}", "a sample has one image, one .cls and at most one .json")
        self._extensions.append(ext)
        if self._ranges and self._ranges[-1][1] == member.start:
            self._ranges[-1] = (self._ranges[-1][0], member.stop)
        else:
            self._ranges.append((member.start, member.stop))
        if member.kind != "file":
            self.refuse(f"member .{shown(ext)} is {member.kind}", "a shard holds plain files only")
        elif ext in IMAGE_EXTENSIONS:
            if self._image is not None:
                self.refuse("two images in one sample", "give each image a key of its own")
            elif member.size == 0:
                self.refuse(f"the image .{ext} is empty", "restore the image or drop the sample")
            else:
                self._image = ext, member, tar.digest(member)
        elif ext == "cls":
            self._add_label(tar.content(member) if member.size <= LONGEST_LABEL else b"")
        elif ext != "json":
            self.refuse(f"member of unknown kind .{shown(ext)}", "keep only png, jpg or jpeg, cls and json in a shard")
        return None

    def _add_label(self, content: bytes) -> None:
        match = LABEL.fullmatch(content)
        if match is None:
            self.refuse(f"label {content[:20]!r} is not an integer", "write a class number, 0 to 999999, as text in .cls")
        else:
            self._label = int(match[1])

    def close(self, uri: str) -> Sample | Fault:
        if self._image is None:
            self.refuse("no image", "add .png or .jpg, or drop the sample")
        if self._label is None:
            self.refuse("no label", "add .cls with the class number, or drop the sample")
        if self._fault is not None:
            return Fault(uri=uri, key=shown(self.key), reason=self._fault[0], cure=self._fault[1])
        assert self._image is not None and self._label is not None
        ext, member, sha = self._image
        return Sample(
            key=self.key,
            ext=ext,
            label=self._label,
            offset=member.offset,
            size=member.size,
            sha256=sha,
            ranges=tuple(self._ranges),
        )


def _bad_name(name: str) -> tuple[str, str] | None:
    """Why a name must not be in a shard, and the cure; None for a good one."""
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        return "absolute path or '..' in its name", "write the shard again with plain relative names"
    if not name.isascii() and SURROGATE.search(name):
        return "its name is not UTF-8", "write the shard again with UTF-8 names"
    if "\0" in name:
        return "a zero byte in its name", "write the shard again with plain names"
    return None


def _samples(tar: TarReader, uri: str) -> Iterator[Sample | Fault]:
    current: _Open | None = None
    seen: set[str] = set()
    for member in tar:
        bad = _bad_name(member.name)
        if member.kind == "folder" and bad is None:
            continue
        match = NAME.match(member.name)
        # A folder, or a file without extension, belongs to no sample.
        if match is None or member.kind == "folder":
            if bad is None and member.kind == "file":
                bad = "no extension", "name members KEY.png, KEY.jpg, KEY.cls, KEY.json"
            reason, cure = bad or (member.kind, "a shard holds plain files only")
            yield Fault(uri=uri, key=shown(member.name) or "(no name)", reason=reason, cure=cure)
            continue
        key = match[1]
        if current is None or key != current.key:
            if current is not None:
                yield current.close(uri)
            current = _Open(key)
            if key in seen:
                current.refuse("the key comes twice", "give each sample a key of its own, its members side by side")
            seen.add(key)
        if bad is not None:
            current.refuse(*bad)
        current.add(match[2].lower(), member, tar)
    if current is not None:
        yield current.close(uri)


def read_shard(
    uri: str, *, on_error: Literal["stop", "quarantine"] = "stop", also: hashlib._Hash | None = None
) -> tuple[list[Sample], ShardRef, tuple[Fault, ...]]:
    """Read a whole shard once, hashing it and every image; any memory it takes is that of the answer.

    Args:
        uri: a local path or any fsspec URI.
        on_error: `stop` at the first fault, or `quarantine`: leave faulty samples out and list them. A shard that
            cannot be read to its end of archive (empty, truncated, damaged, packed, not a tar) is left out as a whole.
        also: another hash that is fed all bytes.

    Returns:
        Its good samples in file order; the shard's digest, size and number of good samples; the faults, none under
        `stop`. Each member but folders is in a sample or named by a fault; of two samples with one key the later is
        the fault.

    Raises:
        DataError: the first fault, under `stop`; names shard and key.
        StorageError: the file cannot be read.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    with open_read(uri) as stream, TarReader(stream, also) as tar:
        try:
            for found in _samples(tar, uri):
                if isinstance(found, Sample):
                    samples.append(found)
                elif on_error == "stop":
                    raise found.error()
                else:
                    faults.append(found)
            if not samples and not faults:
                raise TarFault("empty shard", "restore the shard, or take it off the list")
        except TarFault as broken:
            whole = Fault(uri=uri, key="", reason=broken.reason, cure=broken.cure)
            if on_error == "stop":
                raise whole.error() from None
            samples, faults = [], [whole]
            tar.drain()
        ref = ShardRef(uri=uri, sha256=tar.sha256, bytes=tar.bytes, samples=len(samples), origin="original")
    return samples, ref, tuple(faults)


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
    out.write(bytes(2 * BLOCK))
    out.write(bytes(-out.tell() % TAR_RECORD))
    return count
