"""Tar files by hand, so that a test does not trust the writer that it tests, and can write what no writer would."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

END = bytes(1024)


def make_shard(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar with these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def signed(head: bytes) -> bytes:
    """A 512-byte header with its checksum made right."""
    total = sum(head[:148]) + 8 * 32 + sum(head[156:])
    return head[:148] + b"%06o\0 " % total + head[156:]


def header(
    name: bytes,
    size: int | bytes,
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    device: bytes = b"0000000\0",
) -> bytes:
    """One header with a right checksum; `size` as a number, or the 12 bytes of its field."""
    length = size if isinstance(size, bytes) else b"%011o\0" % size
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0" * 3,
        length,
        b"00000000000\0",
        bytes(8),
        kind,
        bytes(100),
        magic,
        bytes(64),
        device * 2,
        prefix.ljust(167, b"\0"),
    ]
    return signed(b"".join(fields))


def padded(content: bytes) -> bytes:
    """Content filled up with zeros to whole blocks."""
    return content + bytes(-len(content) % 512)


def entry(name: bytes, content: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A member with its header."""
    return header(name, len(content), kind, **fields) + padded(content)


def good(key: bytes, label: bytes = b"1", image: bytes = b"image") -> bytes:
    """The two members of one sample; its image need not be one, since readers of shards do not decode."""
    return entry(key + b".cls", label) + entry(key + b".png", image)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax header with these records, before the member that it speaks of."""
    content = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        content += b"%d" % length + rest
    return entry(b"././@PaxHeader", content, kind)
