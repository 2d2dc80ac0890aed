"""Plain tar out of any stream of bytes: every header is checked, every byte is accounted for, nothing is guessed.

Python's `tarfile` ends without a word at a damaged header, and trusts one of two sizes that contradict each other; so
samples could go missing unseen. Here the walk ends at the end of archive or in a TarFault. A second thread reads and
hashes ahead of the one that parses; memory holds three blocks, however large the shard or its members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

from pipeline.data.tar_headers import BLOCK, REWRITE, Header, TarFault, member_size, parse_header, parse_pax, shown

__all__ = ["Member", "TarReader"]

READ_BYTES = 8 << 20
LONGEST_EXTENDED = 1 << 20
ZEROS = bytes(BLOCK)
FILES, OLD_FILE, FOLDER = (b"0", b"\0", b"7"), b"\0", b"5"
PAX, LONG_NAME, LONG_LINK, GLOBAL_PAX, SPARSE = b"x", b"L", b"K", b"g", b"S"
KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"6": "a named pipe"}
PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d"),
    b"PK\x03\x04": ("zip", "unzip, then tar"),
}


class Member(NamedTuple):
    """One entry: `kind` is "file", "folder" or, in words, what must not be in a shard; `start` is where its headers
    begin, `offset` where its `size` bytes begin, `stop` where the next entry begins. Bytes of the name that are not
    UTF-8 are lone surrogates."""

    name: str
    kind: str
    start: int
    offset: int
    size: int
    stop: int


class TarReader:
    """Walk a tar once from its first byte to its last; iterate over it within its context.

    While a member is the current one, `digest` or `content` may be called once to read it. Where the walk ends in a
    TarFault, `drain` reads the rest, so that `sha256` and `bytes` are those of the whole file in any case.

    Args:
        stream: the file.
        also: another hash that is fed all bytes.
    """

    def __init__(self, stream: BinaryIO, also: hashlib._Hash | None = None) -> None:
        self._stream, self._sha, self._also = stream, hashlib.sha256(), also
        self.bytes = 0
        """Bytes read so far."""
        # The block at work, its first byte's place in the file, and the place in it that is read next.
        self._view, self._base, self._place = memoryview(b""), 0, 0

    def __enter__(self) -> TarReader:
        self._pool = ThreadPoolExecutor(1)
        self._ahead: Future[bytes] = self._pool.submit(self._fetch)
        return self

    def __exit__(self, *fault: object) -> None:
        self._pool.shutdown()

    @property
    def sha256(self) -> str:
        """Hex digest of what was read so far."""
        return self._sha.hexdigest()

    def content(self, member: Member) -> bytes:
        """All bytes of the current member."""
        return bytes(self._take(member.size, member.name))

    def digest(self, member: Member) -> bytes:
        """sha256 of the current member, 32 bytes."""
        if self._place + member.size <= len(self._view):
            return hashlib.sha256(self._take(member.size, member.name)).digest()
        sha = hashlib.sha256()
        for part in self._parts(member.size, member.name):
            sha.update(part)
        return sha.digest()

    def drain(self) -> None:
        """Read the file to its end."""
        while self._next():
            pass

    def __iter__(self) -> Iterator[Member]:
        """All entries in order. Raises TarFault."""
        self._refuse_packed()
        start, extended = 0, dict[bytes, bytes]()
        while True:
            at = self._base + self._place
            head = self._take(BLOCK, "the archive")
            if head[0] == 0 and head == ZEROS:
                break
            header = parse_header(head, at)
            if header.kind in (PAX, LONG_NAME, LONG_LINK):
                if header.kind in extended or (extended and PAX in (header.kind, *extended)):
                    raise TarFault(f"two extended headers for one member at byte {at}", REWRITE)
                extended[header.kind] = self._extended(header.size, at)
                continue
            member = self._member(header, start, extended)
            yield member
            place = member.stop - self._base
            if place <= len(self._view):
                self._place = place
            else:
                for _ in self._parts(place - self._place, member.name):
                    pass
            start, extended = member.stop, {}
        if extended:
            raise TarFault(f"no member after the extended header at byte {start}", "restore the shard")
        self._refuse_rest()

    def _extended(self, size: int, at: int) -> bytes:
        if size > LONGEST_EXTENDED:
            raise TarFault(f"the extended header at byte {at} says {size} bytes", REWRITE)
        content = bytes(self._take(size + -size % BLOCK, "an extended header"))
        # Some readers would go on into the padding.
        if content[size:].strip(b"\0"):
            raise TarFault(f"the extended header at byte {at} is longer than it says", REWRITE)
        return content[:size]

    def _member(self, header: Header, start: int, extended: Mapping[bytes, bytes]) -> Member:
        at = self._base + self._place
        name, size, kind = header.name, header.size, header.kind
        if PAX in extended:
            records = parse_pax(extended[PAX], start)
            name, size = records.get(b"path", name), member_size(size, records, start)
        elif LONG_NAME in extended:
            name = extended[LONG_NAME].partition(b"\0")[0]
        text = name.decode("utf-8", "surrogateescape")
        # Tar before 1988 had no mark for folders; readers still go by the slash.
        if kind in FILES and not (kind == OLD_FILE and header.slash):
            return Member(text, "file", start, at, size, at + size + -size % BLOCK)
        if kind == GLOBAL_PAX:
            raise TarFault(f"a global pax header at byte {start}", "write the shard again without global pax headers")
        if kind == SPARSE:
            raise TarFault(f"a sparse file at byte {start}: '{shown(text)}'", f"{REWRITE}, not sparse")
        what = "a folder" if kind in (FOLDER, OLD_FILE) else KINDS.get(kind, f"an entry of unknown kind {kind!r}")
        if size:
            # Some readers pass over these bytes, others take them for headers.
            raise TarFault(f"{what} of {size} bytes at byte {start}: '{shown(text)}'", REWRITE)
        return Member(text, "folder" if what == "a folder" else what, start, at, 0, at)

    def _refuse_packed(self) -> None:
        if not self._next():
            raise TarFault("empty shard", "restore the shard, or take it off the list")
        for mark, (what, command) in PACKED.items():
            if self._view[: len(mark)] == mark:
                raise TarFault(f"packed with {what}", f"unpack the shard first ({command}); its images are compressed already")

    def _refuse_rest(self) -> None:
        """Nothing but zeros may follow: most readers stop here, and would lose the second of two joined tars."""
        while self._place < len(self._view) or self._next():
            rest = bytes(self._view[self._place :])
            if rest.strip(b"\0"):
                first = self._base + self._place + len(rest) - len(rest.lstrip(b"\0"))
                raise TarFault(
                    f"more data at byte {first}, after the end of archive", "join tars with tar -A, or restore the shard"
                )
            self._place = len(self._view)

    def _fetch(self) -> bytes:
        parts: list[bytes] = []
        left = READ_BYTES
        # Remote streams may return less than they are asked for.
        while left and (part := self._stream.read(left)):
            self._sha.update(part)
            if self._also is not None:
                self._also.update(part)
            parts.append(part)
            left -= len(part)
        self.bytes += READ_BYTES - left
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next(self) -> bool:
        """Go to the first byte of the next block; False at the end of the file."""
        self._base, self._place = self._base + len(self._view), 0
        self._view = memoryview(self._ahead.result())
        if self._view:
            self._ahead = self._pool.submit(self._fetch)
        return bool(self._view)

    def _parts(self, size: int, what: str) -> Iterator[memoryview]:
        """The next `size` bytes, in pieces where a block ends between them."""
        while size:
            if self._place == len(self._view) and not self._next():
                reason = f"truncated: the file ends at byte {self._base}, {size} bytes before the end of {shown(what)}"
                raise TarFault(reason, "restore the shard")
            part = self._view[self._place : self._place + size]
            self._place += len(part)
            size -= len(part)
            yield part

    def _take(self, size: int, what: str) -> memoryview | bytes:
        place = self._place
        if place + size <= len(self._view):
            self._place = place + size
            return self._view[place : place + size]
        return b"".join(self._parts(size, what))
