"""WebDataset shards under any fsspec URI, referenced where they lie."""

from __future__ import annotations

import braceexpand

from pipeline import storage
from pipeline.decode import digest
from pipeline.errors import ConfigError, DataError
from pipeline.records import record

__all__ = ["Config", "Shards", "build"]


@record
class Config:
    """Tars of `KEY.png` or `KEY.jpg`, `KEY.cls`, optional `KEY.json`."""

    training: tuple[str, ...] = ()
    """Shards that the original model saw: URIs, globs, brace patterns (`train-{000..146}.tar`), or folders of tars."""
    unseen: tuple[str, ...] = ()
    """Shards that no model trains on; may be empty for an index, not for a run."""
    classes: tuple[str, ...] = ()
    """Class names in label order; none: the labels themselves."""


class Shards:
    """The source; see `pipeline.data.sources.base.ShardSource`."""

    def __init__(self, config: Config) -> None:
        self.config, self.classes = config, config.classes
        self._training = _expand(config.training, "training")
        self._unseen = _expand(config.unseen, "unseen")
        twice = set(self._training) & set(self._unseen)
        if twice:
            raise ConfigError(f"source: webdataset: {min(twice)}: in training and in unseen", "name each shard in one of them")

    def identity(self) -> str:
        """Digest of the class names and of the addresses as they were given."""
        parts = {field: [storage.absolute(uri) for uri in getattr(self.config, field)] for field in ("training", "unseen")}
        return digest({"webdataset": 2, "classes": self.classes, **parts})

    def training_shards(self) -> tuple[str, ...]:
        """See `ShardSource.training_shards`."""
        return self._training

    def unseen_shards(self) -> tuple[str, ...]:
        """See `ShardSource.unseen_shards`."""
        return self._unseen


def _expand(patterns: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Shard URIs in the order of the patterns, sorted within a glob or folder; each shard once."""
    found: list[str] = []
    for pattern in patterns:
        try:
            uris = list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise ConfigError(f"source: webdataset: {field}: '{pattern}': braces do not match", "correct the pattern") from None
        for uri in map(storage.absolute, uris):
            if uri.endswith(".tar") and not any(mark in uri for mark in "*?["):
                found.append(uri)
                continue
            listed = storage.list_files(uri, ".tar")
            if not listed:
                raise DataError(f"source: webdataset: {field}: '{pattern}': no .tar there", "correct the address")
            found.extend(listed)
    return tuple(dict.fromkeys(found))


def build(config: Config) -> Shards:
    """List the shards.

    Raises:
        ConfigError: no training shard named, a broken pattern, a shard in both lists.
        DataError: a pattern that matches nothing.
    """
    if not config.training:
        raise ConfigError("source: webdataset: training: no shard named", "write source.training=[URI or pattern]")
    return Shards(config)
