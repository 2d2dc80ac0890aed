"""Tombstones: digests only, seen at the next look, per source, and never skipped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import tombstones as module
from pipeline.data.tombstones import Tombstones, deleted_images, read_tombstones, watch, write_tombstones
from pipeline.decode import sha256_text
from pipeline.errors import IntegrityError


def _stones(number: int, source: str = "shards-1", keys: tuple[str, ...] = (), images: tuple[str, ...] = ()) -> Tombstones:
    return Tombstones(
        batch_digest=sha256_text(str(number)),
        source=source,
        keys=tuple(sha256_text(key) for key in keys),
        images=tuple(sha256_text(image) for image in images),
    )


def _mark(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.tuples(st.sampled_from("ab"), st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20))), max_size=4))
def test_what_is_written_is_read_and_each_source_has_its_own_keys(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[str, set[int], set[int]]]
) -> None:
    output = str(tmp_path_factory.mktemp("stones"))
    written = [
        _stones(number, source, tuple(f"k{n}" for n in sorted(keys)), tuple(f"i{n}" for n in sorted(images)))
        for number, (source, keys, images) in enumerate(batches)
    ]
    for stones in written:
        write_tombstones(output, stones)
    assert sorted(read_tombstones(output), key=lambda s: s.batch_digest) == sorted(written, key=lambda s: s.batch_digest)
    # Images are refused in any source; keys are skipped in their own.
    assert deleted_images(output) == {_mark(f"i{n}") for _, _, images in batches for n in images}
    for source in "abc":
        assert watch(output, source)() == {_mark(f"k{n}") for name, keys, _ in batches if name == source for n in keys}


def test_a_batch_written_again_is_one_file(tmp_path: Path) -> None:
    first, second = (write_tombstones(str(tmp_path), _stones(1, keys=("a",))) for _ in range(2))
    assert first == second and len(list((tmp_path / "tombstones").iterdir())) == 1


def test_no_raw_key_is_in_the_file_or_its_name(tmp_path: Path) -> None:
    ref = write_tombstones(str(tmp_path), _stones(1, keys=("person-17/photo",), images=("image",)))
    text = ref.uri + Path(ref.uri).read_text()
    assert "person" not in text and "photo" not in text and sha256_text("person-17/photo") in text


def test_a_new_file_is_seen_at_the_next_call_and_a_removed_one_too(tmp_path: Path) -> None:
    current = watch(str(tmp_path), "shards-1")
    assert _mark("a") not in current()
    ref = write_tombstones(str(tmp_path), _stones(1, keys=("a", "b")))
    assert _mark("a") in current() and _mark("b") in current() and _mark("c") not in current()
    write_tombstones(str(tmp_path), _stones(2, keys=("c",)))
    write_tombstones(str(tmp_path), _stones(3, source="shards-2", keys=("d",)))
    assert _mark("a") in current() and _mark("c") in current() and _mark("d") not in current()
    Path(ref.uri).unlink()
    assert _mark("a") not in current() and _mark("c") in current()


def test_known_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = watch(str(tmp_path), "shards-1")
    read: list[str] = []
    kept = module.read_bytes

    def noted(uri: str) -> bytes:
        read.append(uri)
        return kept(uri)

    monkeypatch.setattr(module, "read_bytes", noted)
    refs = []
    for number in range(3):
        refs.append(write_tombstones(str(tmp_path), _stones(number, keys=(f"k{number}",))).uri)
        current()
        current()
    assert read == refs


def test_a_remote_folder_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    current = watch("memory://stones", "shards-1")
    assert _mark("a") not in current()
    write_tombstones("memory://stones", _stones(1, keys=("a",)))
    now += module.POLL_SECONDS - 0.1
    assert _mark("a") not in current()
    now += 0.2
    assert _mark("a") in current()
    assert deleted_images("memory://stones") == frozenset()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\x80",
        '{"schema": "tombstones/1"}',
        json.dumps({"batch_digest": "b", "source": "shards-1", "keys": ["not hex"], "images": []}),
        json.dumps({"batch_digest": "b", "source": "shards-1", "keys": [], "images": ["beef"]}),
        json.dumps({"batch_digest": "b", "source": "shards-1", "keys": [], "images": [], "schema": "tombstones/9"}),
    ],
)
def test_a_damaged_file_is_refused_never_skipped(tmp_path: Path, content: str) -> None:
    current = watch(str(tmp_path), "shards-1")
    write_tombstones(str(tmp_path), _stones(1, keys=("a",), images=("i",)))
    current()
    (tmp_path / "tombstones" / "bad.json").write_bytes(content.encode("latin-1"))
    for read in (lambda: read_tombstones(str(tmp_path)), lambda: deleted_images(str(tmp_path)), current, current):
        with pytest.raises(IntegrityError, match=r"bad\.json") as caught:
            read()
        assert caught.value.cure


def test_where_nothing_was_deleted_nothing_is_refused(tmp_path: Path) -> None:
    assert read_tombstones(str(tmp_path)) == () and deleted_images(str(tmp_path)) == frozenset()
    assert list(tmp_path.iterdir()) == []
