"""What one tar header says, read strictly: checksum, numbers, names, pax records; of anything unclear a TarFault.

Known are ustar, the pax headers of single members and GNU's long names, which is what writers of shards produce.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from typing import NamedTuple

__all__ = ["BLOCK", "REWRITE", "Header", "TarFault", "member_size", "parse_header", "parse_pax", "shown"]

BLOCK = 512
TYPE, PAX_TYPE = 156, ord("x")
LARGEST_OCTAL = 8**11 - 1
LONGEST_SHOWN = 200
# name, (mode, uid, gid), size, mtime, checksum, kind, skip link, magic, skip owners, (device numbers), prefix
LAYOUT = struct.Struct("100s 24s 12s 12s 8s c 100x 8s 64x 16s 155s 12x")
PAX_SIZE = re.compile(rb"[0-9]{1,19}")
USTAR, GNU = b"ustar\0" + b"00", b"ustar  \0"
REWRITE = "write the shard again with Python's tarfile, webdataset or GNU tar"


class TarFault(Exception):
    """The shard cannot be walked further. `reason` says why and where in the file, `cure` what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.reason, self.cure = reason, cure


class Header(NamedTuple):
    """One header: `name` with its prefix, whether the name field itself ends with a slash, `size` in bytes, the type
    byte."""

    name: bytes
    slash: bool
    size: int
    kind: bytes


def shown(name: str) -> str:
    """A name fit for a message: cut, with control characters, lone surrogates and marks that turn text around escaped."""
    cut = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _number(field: bytes) -> int:
    """A number field: octal digits, or GNU's base 256 for what does not fit. Raises ValueError."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    text = field.partition(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        raise ValueError(f"{field!r} is not a number")
    return int(text or b"0", 8)


@functools.lru_cache(maxsize=1024)
def _check_rest(owner: bytes, mtime: bytes, device: bytes) -> None:
    """ValueError for fields that say nothing about the content and are no numbers. Most members of a shard share theirs."""
    for field in (owner[:8], owner[8:16], owner[16:], mtime, device[:8], device[8:]):
        _number(field)


def _parse(head: memoryview | bytes) -> Header:
    """A header's fields. Raises ValueError with what is wrong."""
    name, owner, size, mtime, checksum, kind, magic, device, prefix = LAYOUT.unpack(head)
    # adler32 has the sum of bytes modulo 65521 in its low half, six times faster than sum(); 256 bytes stay below that.
    total = (zlib.adler32(head[:256]) & 0xFFFF) + (zlib.adler32(head[256:]) & 0xFFFF) - 2
    # The checksum counts its own field as spaces.
    if _number(checksum) != total - sum(checksum) + 8 * 0x20:
        raise ValueError("its checksum is wrong")
    length = _number(size)
    _check_rest(owner, mtime, device)
    if length < 0:
        raise ValueError(f"it says {length} bytes")
    if (magic != USTAR and magic != GNU) or (prefix[0] and magic == GNU):
        raise ValueError("it is of an old tar dialect")
    own = name.partition(b"\0")[0]
    return Header(prefix.partition(b"\0")[0] + b"/" + own if prefix[0] else own, own.endswith(b"/"), length, kind)


# Headers of pax headers hold nothing of their member: in one shard they are all alike.
_parse_again = functools.lru_cache(maxsize=64)(_parse)


def parse_header(head: memoryview | bytes, at: int) -> Header:
    """The header at byte `at`, 512 bytes. Raises TarFault for one that is damaged, or of a dialect that is not known."""
    try:
        return _parse_again(bytes(head)) if head[TYPE] == PAX_TYPE else _parse(head)
    except ValueError as fault:
        if at == 0:
            raise TarFault(f"not a tar: no header at its start, {fault}", "restore the shard, or take it off the list") from None
        raise TarFault(f"damaged: no tar header at byte {at}, {fault}", f"restore the shard, or {REWRITE}") from None


def parse_pax(content: bytes, at: int) -> dict[bytes, bytes]:
    """Records of the pax header at byte `at`: `LENGTH KEY=VALUE` and a line feed each, LENGTH counting all of it.

    Raises:
        TarFault: a record that does not end where it says, or one of a sparse file.
    """
    records: dict[bytes, bytes] = {}
    place = 0
    while place < len(content):
        digits, space, _ = content[place : place + 8].partition(b" ")
        stop = place + int(digits) if space and digits.isdigit() else 0
        key, sign, value = content[place + len(digits) + 1 : max(stop - 1, 0)].partition(b"=")
        if not sign or content[stop - 1 : stop] != b"\n":
            raise TarFault(f"the pax header at byte {at} is damaged", "restore the shard")
        if key.startswith(b"GNU.sparse."):
            raise TarFault(f"a sparse file at byte {at}", f"{REWRITE}, not sparse")
        records[key] = value
        place = stop
    return records


def member_size(own: int, records: dict[bytes, bytes], at: int) -> int:
    """A member's size from its header and its pax header at byte `at`. Raises TarFault where they contradict."""
    text = records.get(b"size")
    if text is None:
        return own
    # Only a size too large for the field has cause to stand elsewhere; of two small ones, each reader trusts another.
    if PAX_SIZE.fullmatch(text) and (int(text) == own or (own in (0, LARGEST_OCTAL) and int(text) > LARGEST_OCTAL)):
        return int(text)
    raise TarFault(f"two sizes for the member at byte {at}: {own} and {shown(text.decode('latin-1'))}", REWRITE)
