"""Keyed digests of what a run forgot and read, and which earlier batches its model holds no more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.bundle import read_run_manifest
from pipeline.decode import canonical
from pipeline.errors import IntegrityError, StorageError
from pipeline.forgotten import Forgotten, clean_of, forgotten_of, is_forgotten, read_forgotten, split_keys
from pipeline.ledger.pseudonyms import key_id, keyed_digest
from pipeline.records import Manifest
from tests.support.finished import FORGOTTEN, LAYOUT, finish

SECRET = b"k" * 32
KEPT = {f"s{shard}/img{number}" for shard, labels in enumerate(LAYOUT) for number in range(len(labels))} - FORGOTTEN.keys()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def manifest(run: Path) -> Manifest:
    return read_run_manifest(str(run))


def of(*keys: str, secret: bytes = SECRET) -> Forgotten:
    return Forgotten(secret=key_id(secret), digests=tuple(sorted(keyed_digest(secret, "key", key) for key in keys)))


def test_the_keys_of_each_split_are_read(run: Path, manifest: Manifest) -> None:
    assert set(split_keys(str(run), manifest, "forget")) == FORGOTTEN.keys()
    assert sorted(split_keys(str(run), manifest, "original")) == sorted({*FORGOTTEN, *KEPT})


def test_digests_tell_with_the_secret_only(run: Path, manifest: Manifest) -> None:
    found = forgotten_of(str(run), manifest, SECRET)
    assert found == of(*FORGOTTEN)
    assert all(is_forgotten(found, SECRET, key) for key in FORGOTTEN)
    assert not any(is_forgotten(found, SECRET, key) for key in KEPT)
    assert {is_forgotten(found, b"x" * 32, key) for key in (*FORGOTTEN, *KEPT)} == {None}


def test_an_index_that_was_changed_or_is_gone_is_named(run: Path, manifest: Manifest, tmp_path: Path) -> None:
    other = dataclasses.replace(manifest, index=tuple(dataclasses.replace(ref, sha256="0") for ref in manifest.index))
    with pytest.raises(IntegrityError, match=r"index\.parquet: changed"):
        list(split_keys(str(run), other, "forget"))
    with pytest.raises(StorageError, match="not found"):
        list(split_keys(str(tmp_path), manifest, "forget"))


def test_the_file_holds_them_or_says_that_it_does_not(tmp_path: Path) -> None:
    file = tmp_path / "forgotten.json"
    assert read_forgotten(str(file)) is None
    file.write_bytes(canonical(of("a")))
    assert read_forgotten(str(file)) == of("a")
    with pytest.raises(IntegrityError, match="not the file that its statement names"):
        read_forgotten(str(file), "0" * 64)
    for content in (b"", b"[]", b"{}", canonical(of("a")) + b" "):
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match="holds no keyed digests"):
            read_forgotten(str(file))


SOME, KEPT_ONE = sorted(FORGOTTEN)[:2], min(KEPT)
CASES = {
    "never read": (of("elsewhere/1"), True, True),
    "forgotten by this run": (of(*SOME), True, True),
    "forgotten here, or never read": (of(*SOME, "elsewhere/1"), True, False),
    "still read": (of(KEPT_ONE), False, False),
    "partly still read": (of(*SOME, KEPT_ONE), False, False),
    "another secret": (of(*SOME, secret=b"x" * 32), False, False),
    "empty": (of(), False, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_clean_only_if_none_of_its_images_can_be_left(run: Path, manifest: Manifest, case: str) -> None:
    """From nothing, from weights that are clean of it, and from weights that are not known to be."""
    digests, from_nothing, from_unknown = CASES[case]

    def clean(inherited: tuple[str, ...] | None) -> bool:
        return clean_of(str(run), manifest, SECRET, {"b": digests}, inherited=inherited) == ("b",)

    assert clean(None) is from_nothing
    assert clean(("b",)) is from_nothing
    assert clean(()) is (from_unknown and case != "never read")
