"""Perceptual hashes: alike for one picture in other files, apart for other pictures; pairs as a plain search finds them."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import likeness
from pipeline.data.likeness import BITS, hash_images, near_pairs, perceptual_hash
from pipeline.data.pack import PackedSource
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef, ShardRef
from pipeline.storage import join
from tests.pipeline.data.tars import packed, picture

MOST = 10**7


def _drawing(seed: int, side: int = 256, *, channels: int = 3) -> Image.Image:
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    image = Image.fromarray(noise if channels == 3 else noise[..., 0])
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def _hash(data: bytes) -> int:
    found = perceptual_hash(data, MOST)
    assert found is not None and 0 <= found < 1 << BITS
    return found


def _differ(one: bytes, other: bytes) -> int:
    return (_hash(one) ^ _hash(other)).bit_count()


@pytest.mark.parametrize("seed", range(8))
def test_one_picture_in_other_files_differs_in_few_bits(seed: int) -> None:
    image = _drawing(seed)
    whole = _stored(image)
    for side in (96, 150, 400):
        resized = image.resize((side, side), Image.Resampling.LANCZOS)
        assert _differ(whole, _stored(resized)) <= 4
        assert _differ(whole, _stored(resized, "JPEG", quality=70)) <= 4
    for quality in (30, 60, 95):
        assert _differ(whole, _stored(image, "JPEG", quality=quality)) <= 4
    assert _differ(whole, _stored(image.convert("L"))) <= 2
    assert _differ(_stored(image, "JPEG", quality=90), _stored(image, "JPEG", quality=90, progressive=True)) <= 1


def test_other_pictures_differ_in_many_bits() -> None:
    stored = [_stored(_drawing(seed), "JPEG") for seed in range(25)]
    far = [_differ(one, other) for one, other in itertools.combinations(stored, 2)]
    assert min(far) > 8 and 26 < np.mean(far) < 38


def test_a_transparent_picture_is_hashed_as_it_is_seen() -> None:
    shapes = []
    for seed in (1, 2):
        ink = np.zeros((256, 256, 4), dtype=np.uint8)
        ink[..., 3] = np.asarray(_drawing(seed, channels=1))
        drawn = Image.fromarray(ink)
        seen = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
        assert _differ(_stored(drawn), _stored(seen)) <= 2
        assert _differ(_stored(drawn.convert("LA")), _stored(seen)) <= 2
        shapes.append(_stored(drawn))
    assert _differ(*shapes) > 8


def test_sixteen_bits_are_hashed_like_eight() -> None:
    grey = np.asarray(_drawing(3, channels=1))
    assert _differ(_stored(Image.fromarray(grey.astype(np.uint16) * 257)), _stored(Image.fromarray(grey))) <= 1


@pytest.mark.parametrize(
    "data",
    [b"", b"text", picture(1)[:30], _stored(_drawing(0), "JPEG")[:400], _stored(_drawing(0), "GIF"), b"\xff\xd8\xff\xe0"],
)
def test_what_cannot_be_decoded_has_no_hash(data: bytes) -> None:
    assert perceptual_hash(data, MOST) is None


def test_what_is_too_large_has_no_hash() -> None:
    data = _stored(_drawing(0, 100))
    assert perceptual_hash(data, 10_000) is not None and perceptual_hash(data, 9_999) is None


HASHES = st.lists(
    st.tuples(st.sampled_from([0, (1 << 64) - 1, 0xF0F0F0F0F0F0F0F0]), st.sets(st.integers(0, 63), max_size=5)).map(
        lambda drawn: drawn[0] ^ sum(1 << bit for bit in drawn[1])
    ),
    max_size=25,
)


def _brute(wanted: list[int], others: list[int], bits: int) -> list[list[int]]:
    found = ([n, m, (a ^ b).bit_count()] for n, a in enumerate(wanted) for m, b in enumerate(others))
    return sorted(pair for pair in found if pair[2] <= bits)


@settings(max_examples=200, deadline=None)
@given(wanted=HASHES, others=HASHES, bits=st.integers(0, 15))
def test_near_pairs_are_those_of_a_plain_search(wanted: list[int], others: list[int], bits: int) -> None:
    pairs = near_pairs(np.array(wanted, dtype=np.uint64), np.array(others, dtype=np.uint64), bits)
    assert pairs.dtype == np.int64 and pairs.shape[1] == 3
    assert pairs.tolist() == _brute(wanted, others, bits)


@pytest.mark.parametrize("bits", range(7))
def test_near_pairs_with_many_collisions(bits: int) -> None:
    rng = np.random.default_rng(bits)
    seeds = rng.integers(0, 1 << 63, 6, dtype=np.uint64)
    columns = []
    for size in (120, 300):
        flips = np.zeros(size, dtype=np.uint64)
        for _ in range(4):
            flips ^= np.uint64(1) << rng.integers(0, 64, size, dtype=np.uint64)
        columns.append(rng.choice(seeds, size) ^ flips)
    found = near_pairs(columns[0], columns[1], bits).tolist()
    assert found == _brute(columns[0].tolist(), columns[1].tolist(), bits)
    assert len(found) > 0 or bits < 3


class Source:
    """A packed source with addresses that stand alone, as the partition hands it to `hash_images`."""

    def __init__(self, root: Path, layout: list[list[int]]) -> None:
        source, self.folder, self.uris = packed(root, layout)
        self.hashes = join(self.folder, "index")
        self.shards, self.files = self._full(source)

    def _full(self, source: PackedSource) -> tuple[list[ShardRef], list[FileRef]]:
        shards = [self._shard(ref) for ref in source.training]
        names = dict.fromkeys(ref.index for ref in shards)
        files = [FileRef(uri=join(self.folder, f.uri), sha256=f.sha256, bytes=f.bytes) for f in source.index]
        return shards, [file for file in files if file.uri in names]

    def _shard(self, ref: ShardRef) -> ShardRef:
        return ShardRef(
            uri=join(self.folder, ref.uri),
            sha256=ref.sha256,
            bytes=ref.bytes,
            samples=ref.samples,
            origin=ref.origin,
            index=join(self.folder, ref.index),
            row_group=ref.row_group,
        )

    def hash(self, max_pixels: int = MOST, **options: Any) -> list[np.ma.MaskedArray]:
        return hash_images(self.shards, self.files, self.hashes, max_pixels=max_pixels, **options)


def test_images_are_hashed_in_index_order_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.listing.MOST_SHARDS", 2)
    source = Source(tmp_path, [[0, 1, 2], [1], [2, 2]])
    assert len(source.files) >= 2
    asked: list[bytes] = []
    kept = perceptual_hash

    def noted(data: bytes, max_pixels: int) -> int | None:
        asked.append(data)
        return kept(data, max_pixels)

    monkeypatch.setattr(likeness, "perceptual_hash", noted)
    told: list[int] = []
    columns = source.hash(workers=1, progress=lambda act, done: told.append(done))
    assert asked == [picture(number) for number in range(1, 7)]
    assert np.ma.concatenate(columns).tolist() == [_hash(picture(number)) for number in range(1, 7)]
    assert [column.dtype for column in columns] == [np.uint64] * len(columns) and told[-1] == 6
    asked.clear()
    assert [column.tolist() for column in source.hash()] == [column.tolist() for column in columns] and asked == []
    source.hash(max_pixels=100)  # another bound may have another answer
    assert len(asked) == 6


def test_hashes_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.listing.MOST_SHARDS", 1)
    source = Source(tmp_path, [[0, 1], [2, 0], [1]])
    found = [column.tolist() for column in source.hash(workers=2)]
    files = {path.name: path.read_bytes() for path in Path(source.hashes).glob("phash-*")}
    for path in Path(source.hashes).glob("phash-*"):
        path.unlink()
    assert [column.tolist() for column in source.hash(workers=1)] == found
    assert {path.name: path.read_bytes() for path in Path(source.hashes).glob("phash-*")} == files and len(files) == 3


def test_images_without_a_hash_are_masked(tmp_path: Path) -> None:
    source = Source(tmp_path, [[0, 1, 2]])
    (column,) = source.hash(max_pixels=15)
    assert np.ma.getmaskarray(column).tolist() == [True] * 3
    (column,) = source.hash(max_pixels=16)
    assert np.ma.getmaskarray(column).tolist() == [False] * 3


def test_a_shard_that_changed_is_not_hashed(tmp_path: Path) -> None:
    source = Source(tmp_path, [[0, 1, 2]])
    content = bytearray(Path(source.uris[0]).read_bytes())
    place = bytes(content).rindex(b"IDAT") + 6
    content[place] ^= 1
    Path(source.uris[0]).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"train-0\.tar: changed since it was indexed"):
        source.hash()
    assert not list(Path(source.hashes).glob("phash-*"))


def test_damaged_hashes_are_named(tmp_path: Path) -> None:
    source = Source(tmp_path, [[0, 1, 2]])
    source.hash()
    (path,) = Path(source.hashes).glob("phash-*")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StorageError, match=r"phash-.*: not readable") as caught:
        source.hash()
    assert "remove the file" in caught.value.cure
