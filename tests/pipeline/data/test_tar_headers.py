"""One header: what Python's tarfile writes is understood alike, and what it would guess at is refused."""

from __future__ import annotations

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tar_headers import LARGEST_OCTAL, TarFault, member_size, parse_header, parse_pax, shown
from tests.support.shards import header, pax, signed

FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])


@given(
    name=st.binary(min_size=1, max_size=99).filter(lambda name: b"\0" not in name),
    size=st.integers(0, LARGEST_OCTAL),
    uid=st.integers(0, 8**7 - 1),
    mtime=st.integers(0, LARGEST_OCTAL),
    format=FORMATS,
)
def test_a_header_says_what_its_writer_meant(name: bytes, size: int, uid: int, mtime: int, format: int) -> None:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.uid, info.mtime = size, uid, mtime
    found = parse_header(info.tobuf(format), 0)
    assert (found.name, found.size, found.kind, found.slash) == (name, size, b"0", name.endswith(b"/"))


@given(place=st.integers(0, 511), patch=st.binary(min_size=1, max_size=12), magic=st.sampled_from([b"ustar\x0000", b"ustar  \0"]))
def test_a_header_with_other_fields_is_read_as_tarfile_reads_it_or_refused(place: int, patch: bytes, magic: bytes) -> None:
    whole = header(b"k.png", 5, magic=magic)
    head = signed((whole[:place] + patch + whole[place + len(patch) :])[:512])
    try:
        expected = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        with pytest.raises(TarFault):
            parse_header(head, 512)
        return
    try:
        found = parse_header(head, 512)
    except TarFault:
        return
    assert (found.name.decode("utf-8", "surrogateescape").rstrip("/"), found.size) == (expected.name.rstrip("/"), expected.size)


@given(place=st.integers(0, 511), bit=st.integers(0, 7))
def test_no_single_flipped_bit_passes_the_checksum(place: int, bit: int) -> None:
    damaged = bytearray(header(b"k.png", 5))
    damaged[place] ^= 1 << bit
    try:
        found = parse_header(bytes(damaged), 0)
    except TarFault:
        return
    # The last byte of the checksum's own field counts for nothing.
    assert place == 155 and found == parse_header(header(b"k.png", 5), 0)


@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
def test_the_checksum_is_exact_for_headers_of_high_bytes(fill: int) -> None:
    head = bytearray(header(b"k.png", 5))
    head[157:257] = head[265:329] = bytes([fill]) * 100
    head = head[:512]
    head[329:345] = b"0000000\0" * 2
    assert parse_header(signed(bytes(head)), 0).size == 5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (b"00000000017\0", 15),
        (b"         17 ", 15),
        (b"777777777777", 8**12 - 1),
        (b"\x80" + (9 << 30).to_bytes(11, "big"), 9 << 30),
        (bytes(12), 0),
    ],
)
def test_sizes_as_writers_write_them(size: bytes, expected: int) -> None:
    assert parse_header(header(b"k.png", size), 0).size == expected


@pytest.mark.parametrize(
    "size", [b"-0000000017\0", b"0x11       \0", b"1_7        \0", b"00000000018\0", b"\xff" * 12, b"+17        \0"]
)
def test_sizes_that_lie_or_are_none(size: bytes) -> None:
    with pytest.raises(TarFault, match=r"byte 1024.*(not a number|says -)"):
        parse_header(header(b"k.png", size), 1024)


@pytest.mark.parametrize(
    "head",
    [
        header(b"k.png", 5, magic=bytes(8)),
        header(b"k.png", 5, magic=b"ustar  \0", prefix=b"14000000000"),
        header(b"k.png", 5, device=b"no digit"),
    ],
)
def test_dialects_that_readers_take_in_different_ways_are_refused(head: bytes) -> None:
    with pytest.raises(TarFault, match="at byte 512") as caught:
        parse_header(head, 512)
    assert "write the shard again" in caught.value.cure


@given(
    records=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="="), min_size=1).filter(
            lambda key: not key.startswith("GNU.sparse.")
        ),
        st.text(st.characters(codec="utf-8")),
        max_size=5,
    )
)
def test_pax_records_come_back(records: dict[str, str]) -> None:
    encoded = {key.encode(): value.encode() for key, value in records.items()}
    block = pax(*encoded.items())
    assert parse_pax(block[512 : 512 + parse_header(block[:512], 0).size], 0) == encoded


@given(content=st.binary(min_size=1, max_size=60))
def test_any_other_bytes_end_in_records_that_make_them_up_or_in_a_fault(content: bytes) -> None:
    try:
        records = parse_pax(content, 7)
    except TarFault as fault:
        assert "byte 7" in fault.reason
    else:
        assert sum(len(key) + len(value) for key, value in records.items()) < len(content)


@pytest.mark.parametrize(
    "content",
    [b"0 a=b\n", b"5 a=b\n", b"7 a=b\n", b"6 a=b", b"6  a=b\n", b"-6 a=b\n", b"99999999 a=b\n", b"4 ab\n", b"6 a=b\n\0"],
)
def test_pax_records_that_lie(content: bytes) -> None:
    with pytest.raises(TarFault, match="pax header at byte 0 is damaged"):
        parse_pax(content, 0)


def test_a_second_size_counts_only_where_the_first_had_no_room() -> None:
    assert member_size(5, {}, 0) == 5 == member_size(5, {b"size": b"5"}, 0)
    for own in (0, LARGEST_OCTAL):
        assert member_size(own, {b"size": b"8589934592"}, 0) == 1 << 33
    for own, text in ((0, b"5"), (5, b"0"), (5, b"8589934592"), (0, b"-1"), (0, b"+9589934592"), (0, b"9" * 20), (0, b"")):
        with pytest.raises(TarFault, match="two sizes"):
            member_size(own, {b"size": text}, 0)


@given(st.text(max_size=300))
def test_shown_names_are_printable_and_short(name: str) -> None:
    text = shown(name)
    text.encode()
    assert text.isprintable() and len(text) <= 201 * 10
    assert text == name or not name.isprintable() or len(name) > 200
