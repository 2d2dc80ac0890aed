"""Cutting copies samples byte for byte, headers and sidecars included, whatever the layout of the shard."""

from __future__ import annotations

import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.cut import Cut, Piece, cut_shards, write_forget_shards
from pipeline.data.shards import read_shard
from pipeline.errors import IntegrityError, StorageError
from tests.pipeline.data.tars import sample, write_tar


def _source(folder: Path, keys: str = "abc", *, format: int = tarfile.PAX_FORMAT) -> str:
    """A shard with a sidecar to every second sample."""
    members = []
    for number, key in enumerate(keys):
        members += sample(key, number, number) + ([(f"{key}.json", f'{{"n":{number}}}'.encode())] if number % 2 else [])
    return write_tar(folder / "source.tar", members, format=format)


def _piece(folder: Path, uri: str, *forgotten: int) -> Piece:
    return Piece(
        source=uri,
        sha256=read_shard(uri, on_error="quarantine")[1].sha256,
        forgotten=frozenset(forgotten),
        target=str(folder / "rest.tar"),
        spool=str(folder / "spool"),
    )


def _cut(piece: Piece) -> Cut:
    (cut,) = cut_shards([piece])
    return cut


def _members(uri: str) -> dict[str, bytes]:
    with tarfile.open(uri) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 8),
    per_shard=st.integers(1, 5),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    data=st.data(),
)
def test_rest_and_taken_together_are_the_source(
    tmp_path_factory: pytest.TempPathFactory, count: int, per_shard: int, format: int, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("cut")
    source = _source(root, "abcdefgh"[:count], format=format)
    gone = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    piece = _piece(root, source, *gone)
    cut = _cut(piece)
    order = data.draw(st.permutations(cut.taken))
    targets = [str(root / f"forget-{n}.tar") for n in range(-(-len(gone) // per_shard))]
    forget, offsets = write_forget_shards(order, targets=targets, per_shard=per_shard)

    whole, left = _members(source), _members(cut.rewritten.uri) if cut.rewritten else {}
    taken = {name: content for ref in forget for name, content in _members(ref.uri).items()}
    assert {**left, **taken} == whole and not set(left) & set(taken)
    names = "abcdefgh"
    assert {name[0] for name in taken} == {names[row] for row in gone}
    assert list(left) == [name for name in whole if name in left]

    found = read_shard(source)[0]
    kept = [sample for row, sample in enumerate(found) if row not in gone]
    if kept:
        assert cut.rewritten is not None
        again, ref, _ = read_shard(cut.rewritten.uri)
        assert [(s.key, s.sha256, s.label) for s in again] == [(s.key, s.sha256, s.label) for s in kept]
        assert tuple(s.offset for s in again) == cut.offsets
        assert (ref.sha256, ref.bytes, ref.samples) == (cut.rewritten.sha256, cut.rewritten.bytes, len(kept))
        assert cut.rewritten.origin == "rewritten" and cut.rewritten.bytes % tarfile.RECORDSIZE == 0
    else:
        assert cut.rewritten is None and cut.offsets == () and not Path(piece.target).exists()
    read = [read_shard(target) for target in targets]
    assert [s.offset for samples, _, _ in read for s in samples] == list(offsets)
    assert [(ref.sha256, ref.samples, "forget") for _, ref, _ in read] == [(r.sha256, r.samples, r.origin) for r in forget]
    assert all(ref.samples == per_shard for ref in forget[:-1])


def test_samples_that_were_set_aside_are_not_carried_over(tmp_path: Path) -> None:
    uri = write_tar(tmp_path / "s.tar", [*sample("a", 0), ("bad.cls", b"0"), *sample("b", 1, 1), *sample("c", 1, 2)])
    cut = _cut(_piece(tmp_path, uri, 1))
    assert cut.rewritten is not None
    assert set(_members(cut.rewritten.uri)) == {"a.cls", "a.png", "c.cls", "c.png"}
    (forget,), _ = write_forget_shards(cut.taken, targets=[str(tmp_path / "forget.tar")], per_shard=5)
    assert set(_members(forget.uri)) == {"b.cls", "b.png"}


def test_members_of_a_sample_with_a_folder_between_them_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_tar(path, sample("a", 0))
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    cut = _cut(_piece(tmp_path, str(path), 0))
    (forget,), offsets = write_forget_shards(cut.taken, targets=[str(tmp_path / "forget.tar")], per_shard=5)
    assert list(_members(forget.uri)) == ["a.cls", "a.png"]
    assert offsets == (read_shard(forget.uri)[0][0].offset,)


def test_pieces_come_back_in_order_from_any_number_of_workers(tmp_path: Path) -> None:
    pieces = [_piece(tmp_path / str(n), _source(tmp_path / str(n), "abcd"[: n + 1]), 0) for n in range(4)]
    alone = list(cut_shards(pieces, workers=1))
    content = [Path(piece.target).read_bytes() for piece in pieces[1:]]
    assert list(cut_shards(pieces, workers=2)) == alone
    assert [Path(piece.target).read_bytes() for piece in pieces[1:]] == content
    assert [len(cut.offsets) for cut in alone] == [0, 1, 2, 3]


def test_a_shard_that_changed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    piece = _piece(tmp_path, _source(tmp_path), 1)
    _source(tmp_path, "abd")
    with pytest.raises(IntegrityError, match=r"source\.tar: changed since it was indexed") as caught:
        _cut(piece)
    assert caught.value.cure and sorted(path.name for path in tmp_path.iterdir()) == ["source.tar"]


def test_a_target_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    piece = _piece(tmp_path, _source(tmp_path), 0)
    (tmp_path / "rest.tar").mkdir()
    with pytest.raises(StorageError, match=r"rest\.tar"):
        _cut(piece)
    assert not list(tmp_path.glob(".rest.tar*"))


def test_any_storage_is_cut_to_any_other(tmp_path: Path) -> None:
    local = _source(tmp_path)
    with fsspec.open("memory://cut/source.tar", "wb") as out:
        out.write(Path(local).read_bytes())
    here = _cut(_piece(tmp_path, local, 1))
    piece = _piece(tmp_path, "memory://cut/source.tar", 1)
    there = _cut(
        Piece(
            source=piece.source, sha256=piece.sha256, forgotten=piece.forgotten, target="memory://cut/rest.tar", spool=piece.spool
        )
    )
    assert here.rewritten is not None and there.rewritten is not None
    assert there.rewritten.sha256 == here.rewritten.sha256 and there.offsets == here.offsets
    assert read_shard("memory://cut/rest.tar")[1].sha256 == here.rewritten.sha256
