"""Shard lists: braces, globs, folders; no command URLs; nothing twice."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.data.listing import list_shards, look_at
from pipeline.data.sources.base import ShardSource
from pipeline.data.sources.webdataset import Config, build
from pipeline.errors import ConfigError, DataError, StorageError
from tests.pipeline.data.tars import sample, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write_tar(tmp_path / f"t-{number:03d}.tar", sample(f"k{number}", 0, number))
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize("pattern", ["t-{000..002}.tar", "t-*.tar", "t-00[0-2].tar", "", "{t-000,t-001,t-002}.tar"])
def test_every_way_of_naming_shards_gives_the_same_list(folder: Path, pattern: str) -> None:
    source = build(Config(training=(f"{folder}/{pattern}",)))
    assert source.training_shards() == tuple(f"{folder}/t-{n:03d}.tar" for n in range(3))
    assert source.unseen_shards() == () and isinstance(source, ShardSource)


def test_order_is_the_patterns_and_each_shard_counts_once(folder: Path) -> None:
    source = build(Config(training=(f"{folder}/t-002.tar", f"{folder}/t-*.tar"), classes=("zero",)))
    assert [Path(uri).name for uri in source.training_shards()] == ["t-002.tar", "t-000.tar", "t-001.tar"]
    assert source.classes == ("zero",)


def test_identity_follows_addresses_split_and_classes_not_content(folder: Path) -> None:
    one = Config(training=(f"{folder}/t-000.tar",), unseen=(f"{folder}/t-001.tar",))
    two = Config(training=(f"{folder}/t-001.tar",), unseen=(f"{folder}/t-000.tar",))
    three = Config(training=one.training, unseen=one.unseen, classes=("a",))
    four = Config(training=(*one.training, f"{folder}/t-002.tar"), unseen=one.unseen)
    before = build(one).identity()
    assert build(one).identity() == before
    assert len({before, *(build(other).identity() for other in (two, three, four))}) == 4
    # Shards may be added to and changed: the index is refreshed in place, under the same identity.
    write_tar(folder / "t-000.tar", [*sample("k0", 0), *sample("more", 0)])
    assert build(one).identity() == before
    pattern = Config(training=(f"{folder}/t-*.tar",))
    whole = build(pattern)
    write_tar(folder / "t-003.tar", sample("k3", 0, 3))
    grown = build(pattern)
    assert grown.identity() == whole.identity() and len(grown.training_shards()) == len(whole.training_shards()) + 1


def test_an_address_means_the_same_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = build(Config(training=(f"{folder}/t-*.tar",)))
    monkeypatch.chdir(folder)
    for near in ("t-*.tar", "./t-*.tar", f"file://{folder}/t-*.tar"):
        source = build(Config(training=(near,)))
        assert source.training_shards() == absolute.training_shards()
        assert source.identity() == absolute.identity()


def test_shards_in_other_storage_are_listed() -> None:
    for number in range(2):
        with fsspec.open(f"memory://listed/t-{number}.tar", "wb") as out:
            out.write(b"x" * (number + 1))
    for pattern in ("memory://listed/t-{0..1}.tar", "memory://listed/t-*.tar", "memory://listed/"):
        uris = build(Config(training=(pattern,))).training_shards()
        assert [look_at(uri)[0] for uri in uris] == [1, 2] and all(uri.startswith("memory://") for uri in uris)


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no shard named"):
        build(Config())
    with pytest.raises(ConfigError, match="in training and in unseen"):
        build(Config(training=(f"{folder}/t-*.tar",), unseen=(f"{folder}/t-001.tar",)))
    with pytest.raises(ConfigError, match="braces do not match"):
        build(Config(training=(f"{folder}/t-{{000.tar",)))
    with pytest.raises(DataError, match=r"no \.tar there"):
        build(Config(training=(f"{folder}/x-*.tar",)))
    for command in ("pipe:cat x.tar", "simplecache::s3://b/x.tar", "ssh://host/x.tar", "pipe:rm {a,b}.tar"):
        with pytest.raises(ConfigError, match="not a plain storage address"):
            build(Config(training=(command,)))


def test_a_named_shard_that_is_not_there_is_found_when_the_shards_are_listed(folder: Path) -> None:
    source = build(Config(training=(f"{folder}/t-009.tar",)))
    with pytest.raises(StorageError, match=r"t-009\.tar: not found"):
        list_shards(source.training_shards())
