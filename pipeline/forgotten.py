"""Keyed digests of the image keys that a run forgot or trained on: proof for who holds the secret, noise once it is destroyed.

A plain hash of a key that can be guessed tells whether the guess was right; a keyed one does so only beside the secret.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping

from pipeline.decode import canonical
from pipeline.errors import IntegrityError
from pipeline.ledger.pseudonyms import key_id, keyed_digest
from pipeline.records import Manifest, record
from pipeline.storage import exists, join, read_bytes

__all__ = ["Forgotten", "clean_of", "forgotten_of", "is_forgotten", "read_forgotten", "split_keys"]


@record
class Forgotten:
    """HMAC-SHA256 of each forgotten key, sorted; `secret` is the id of the secret, which does not tell it."""

    secret: str
    digests: tuple[str, ...]
    schema: str = "forgotten/1"


def split_keys(folder: str, manifest: Manifest, split: str) -> Iterator[str]:
    """The image keys of one split of a run, shard by shard. They are personal data: digest them, and let go of them.

    Raises:
        IntegrityError: an index file is not the one that the manifest names.
        StorageError: it is gone, as after an erasure.
    """
    import pyarrow.parquet as pq

    known = {ref.uri: ref.sha256 for ref in manifest.index}
    opened: tuple[str, pq.ParquetFile] | None = None
    for shard in manifest.split(split).shards:
        if opened is None or opened[0] != shard.index:
            content = read_bytes(join(folder, shard.index))
            if hashlib.sha256(content).hexdigest() != known.get(shard.index):
                raise IntegrityError(f"{join(folder, shard.index)}: changed: not the index of this run", "restore the file")
            opened = shard.index, pq.ParquetFile(io.BytesIO(content))
        yield from opened[1].read_row_group(shard.row_group, columns=["key"])["key"].to_pylist()


def forgotten_of(folder: str, manifest: Manifest, secret: bytes) -> Forgotten:
    """The keyed digests of all that a run forgot. Raises what `split_keys` raises."""
    found = {keyed_digest(secret, "key", key) for key in split_keys(folder, manifest, "forget")}
    return Forgotten(secret=key_id(secret), digests=tuple(sorted(found)))


def read_forgotten(uri: str, sha256: str = "") -> Forgotten | None:
    """The digests in a file, or None where there is no such file.

    Raises:
        IntegrityError: it holds something else, or not the bytes of the given sha256.
    """
    if not exists(uri):
        return None
    content = read_bytes(uri)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError(f"{uri}: changed: not the file that its statement names", "restore the file")
    try:
        plain = json.loads(content)
        found = Forgotten(secret=plain["secret"], digests=tuple(plain["digests"]), schema=plain["schema"])
        if canonical(found) == content:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise IntegrityError(f"{uri}: changed: holds no keyed digests", "get the release again from its owner")


def is_forgotten(found: Forgotten, secret: bytes, key: str) -> bool | None:
    """Whether an image is among the forgotten. None: the secret is another than the digests were made with."""
    if key_id(secret) != found.secret:
        return None
    return keyed_digest(secret, "key", key) in found.digests


def clean_of(
    folder: str, manifest: Manifest, secret: bytes, earlier: Mapping[str, Forgotten], *, inherited: Collection[str] | None
) -> tuple[str, ...]:
    """Of earlier releases, by batch digest, those whose forgotten images the model of this run holds no more, or never saw.

    A batch counts if this run forgot all its images; or if of its images this run read none that it did not forget, and the
    weights that it began from hold none either. Digests that were made with another secret say nothing.

    Args:
        folder: the run folder.
        manifest: of the run.
        secret: of the digests.
        earlier: digests of what each batch forgot.
        inherited: batches that the weights it began from hold none of; None: it began from nothing.

    Raises:
        IntegrityError, StorageError: as `split_keys`.
    """
    told = {batch: frozenset(item.digests) for batch, item in earlier.items() if item.digests and item.secret == key_id(secret)}
    if not told:
        return ()
    own = frozenset(forgotten_of(folder, manifest, secret).digests)
    every = frozenset().union(*told.values()) - own
    read = {found for key in split_keys(folder, manifest, "original") if (found := keyed_digest(secret, "key", key)) in every}
    clean = [
        batch
        for batch, digests in told.items()
        if digests <= own or (not digests & read and (inherited is None or batch in inherited))
    ]
    return tuple(sorted(clean))
