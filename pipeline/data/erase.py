"""Erase a batch's images from the source they were cut from: rewritten shards take the old ones' place, and every
version of what held a deleted image goes.

Crash-safe and repeatable: tombstones first, then the new shards, then the new generation of `source.json`, then the old
objects, then the run's own private files, and the proof last. What an earlier attempt did is recognised and not done
again. Nothing is touched while a retention lock holds any of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import posixpath
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.data.index import read_part
from pipeline.data.pack import PackedSource, load_source, regenerate
from pipeline.data.rows import read_row_group
from pipeline.data.selection import Wanted, choose
from pipeline.data.tombstones import Tombstones, read_tombstones, write_tombstones
from pipeline.errors import IntegrityError, StorageError
from pipeline.objects import Version, abort_uploads, knows_versions, locked_until, other_name, remove, versions
from pipeline.records import FileRef, Gone, Manifest, ShardRef
from pipeline.storage import exists, hash_file, join, list_files, open_read, publish

__all__ = ["Erasing", "Swap"]

BLOCK = 1 << 20
CURE = "run the batch again under another name=, on the source as it is now, and erase that run"


@dataclasses.dataclass(frozen=True)
class Swap:
    """A source shard that held deleted images: where it lies, and the rest of it and the place that this takes."""

    old: ShardRef
    rest: ShardRef | None
    target: str

    @property
    def in_place(self) -> bool:
        """Whether the rest takes the shard's own address."""
        return self.rest is not None and self.target == self.old.uri


class Erasing:
    """One batch's erasure.

    Args:
        folder: the run folder.
        config: the run's configuration.
        manifest: the run's manifest.

    Raises:
        StorageError: the packed source is not there.
        IntegrityError: a shard is neither the one that the run cut nor what it was rewritten to.
    """

    def __init__(self, folder: str, config: RunConfig, manifest: Manifest) -> None:
        self.folder, self.config, self.manifest = folder, config, manifest
        self.source_folder = join(folder, manifest.source_folder)
        self.swaps = tuple(self._swaps())

    def packed(self) -> PackedSource:
        """The source's present generation."""
        found = load_source(self.source_folder)
        if found is None:
            raise StorageError(f"{self.source_folder}: no packed source", "restore the folder, or run the chain again")
        return found

    def _swaps(self) -> Iterator[Swap]:
        """Shards of the original split that the run did not keep, in order."""
        kept = {shard.uri: shard for shard in self.manifest.split("retain").shards}
        for number, shard in enumerate(self.manifest.split("original").shards):
            if shard.uri in kept:
                continue
            rest = kept.get(f"shards/rewritten-{number:06d}.tar") or kept.get(
                join(self.folder, "shards", f"rewritten-{number:06d}.tar")
            )
            old = dataclasses.replace(shard, uri=join(self.folder, shard.uri))
            target = old.uri
            if old.uri.startswith(self.source_folder + "/"):
                # In a folder of ours another name is safe: readers of the old generation never see a shard change.
                target = f"{old.uri.removesuffix('.tar')}.{self.manifest.batch_digest[:8]}.tar"
            yield Swap(old, dataclasses.replace(rest, uri=join(self.folder, rest.uri)) if rest else None, target)

    def tombstones(self) -> Tombstones:
        """The batch's tombstones; set now, from the run's forget rows, where they were not set before."""
        source = posixpath.basename(self.source_folder)
        for stones in read_tombstones(self.config.output):
            ours = (stones.batch_digest, stones.source) == (self.manifest.batch_digest, source)
            # Tombstones set early may lack copies that the run found and included.
            if ours and len(stones.keys) == self.manifest.split("forget").samples:
                return stones
        tables = [self._rows(shard) for shard in self.manifest.split("forget").shards]
        keys = (key for table in tables for key in table["key"].to_pylist())
        images = {mark.hex() for table in tables for mark in table["sha256"].to_pylist()}
        stones = Tombstones(
            batch_digest=self.manifest.batch_digest,
            source=source,
            keys=tuple(sorted(hashlib.sha256(key.encode()).hexdigest() for key in keys)),
            images=tuple(sorted(images)),
        )
        write_tombstones(self.config.output, stones)
        return stones

    def _rows(self, shard: ShardRef) -> pa.Table:
        ref = next(ref for ref in self.manifest.index if ref.uri == shard.index)
        return read_row_group(join(self.folder, ref.uri), ref.sha256, shard.row_group)

    def locks(self, planned: Sequence[Gone]) -> tuple[str, ...]:
        """What a retention lock holds, and until when. A rest that took its shard's place may be locked, and so may a page
        that was written anew: they stay."""
        found, swaps = [], {swap.old.uri: swap for swap in self.swaps}
        pages = {item.version for item in planned if item.uri == self._page}
        for uri in dict.fromkeys(item.uri for item in planned):
            for version in versions(uri):
                if (uri in swaps and self._stays(swaps[uri], version)) or (uri == self._page and version.version not in pages):
                    continue
                if until := locked_until(version):
                    found.append(f"{uri}{f' version {version.version}' if version.version else ''}: {until}")
        return tuple(found)

    def _stays(self, swap: Swap, version: Version) -> bool:
        """Whether this version is the rest, already in the old shard's place."""
        if not (swap.in_place and swap.rest and version.latest and not version.marker):
            return False
        return version.bytes == swap.rest.bytes and hash_file(swap.old.uri).sha256 == swap.rest.sha256

    @property
    def pictures(self) -> tuple[str, ...]:
        """The run's picture files that show deleted images."""
        return tuple(f"evaluation/grid_{number}.png" for number in range(len(self.manifest.groups)))

    @property
    def _page(self) -> str:
        """The run's page: written again without the pictures, but its older versions hold them."""
        return join(self.folder, "report.html")

    def _old_pages(self) -> list[Version]:
        return [version for version in versions(self._page) if not version.latest]

    def _private(self) -> list[str]:
        """The run's own files that hold deleted images or their keys: shards, rows, requests, pictures, list of copies."""
        names = ["shards/index.parquet", "shards/batch.json", "shards/copies.csv", *self.pictures]
        uris = [join(self.folder, shard.uri) for shard in self.manifest.split("forget").shards]
        return [uri for uri in (*uris, *(join(self.folder, name) for name in names)) if exists(uri)]

    def put_rest(self) -> tuple[FileRef, ...]:
        """Publish each rest at its place. Bytes that are there already are not written again.

        Raises:
            IntegrityError: a shard is not the one that the run cut: another run was faster.
        """
        placed = []
        for swap in self.swaps:
            found = hash_file(swap.old.uri).sha256 if exists(swap.old.uri) else ""
            done = swap.rest is not None and exists(swap.target) and hash_file(swap.target).sha256 == swap.rest.sha256
            if found not in ("", swap.old.sha256) and not (done and swap.in_place):
                raise IntegrityError(f"{swap.old.uri}: changed since this run cut it", CURE)
            if swap.rest is None:
                continue
            if not done:
                if not found:
                    raise IntegrityError(f"{swap.old.uri}: gone since this run cut it", CURE)
                _copy(swap.rest, swap.target)
            placed.append(FileRef(uri=swap.target, sha256=swap.rest.sha256, bytes=swap.rest.bytes))
        return tuple(placed)

    def publish_generation(self) -> PackedSource:
        """`source.json` with the rest in place of the old shards, unless it says so already."""
        packed = self.packed()
        names = {join(self.source_folder, ref.uri): ref for ref in packed.shards}
        moved = {}
        for swap in self.swaps:
            ref = names.get(swap.old.uri)
            if ref is not None and ref.sha256 == swap.old.sha256:
                moved[ref.uri] = swap.target if swap.rest is not None else ""
        return regenerate(self.source_folder, packed, moved, settings=self.config.shards) if moved else packed

    def plan(self) -> tuple[Gone, ...]:
        """Every version that is to go, with the digest that it is known by: old shards, parts of the index that hold
        their rows, the run's private files. Found once, before anything is touched.

        Raises:
            StorageError: a shard is a link, whose bytes would stay.
            IntegrityError: the source's index says that a shard is another one than the run cut.
        """
        gone = []
        indexed = {join(self.source_folder, ref.uri): ref.sha256 for ref in self.packed().shards}
        for swap in self.swaps:
            # Only what the index knows, for nothing is read here; `put_rest` looks at the bytes.
            if indexed.get(swap.old.uri) != swap.old.sha256:
                raise IntegrityError(f"{swap.old.uri}: changed or gone since this run cut it; nothing was touched", CURE)
            if other := other_name(swap.old.uri):
                message = f"{swap.old.uri}: {other}: the images would stay there; nothing was touched"
                raise StorageError(message, "put a copy of the file in the link's place, remove the other one, and erase again")
            for version in versions(swap.old.uri):
                if not self._stays(swap, version):
                    known = swap.old.sha256 if version.latest and not version.marker else ""
                    gone.append(Gone(uri=version.uri, version=version.version, bytes=version.bytes, sha256=known))
        for uri in (*self._index_parts(), *self._private()):
            sha256 = hash_file(uri).sha256
            for version in versions(uri):
                known = sha256 if version.latest else ""
                gone.append(Gone(uri=uri, version=version.version, bytes=version.bytes, sha256=known))
        # Where the store keeps no versions, writing the page again is its end.
        pages = [version for version in versions(self._page) if version.version not in ("", "null")]
        gone += [Gone(uri=self._page, version=page.version, bytes=page.bytes, sha256="") for page in pages]
        return tuple(gone)

    def _index_parts(self) -> Iterator[str]:
        """Parts of the index that hold rows of the old shards, and the perceptual hashes that belong to them."""
        old = {(swap.old.uri, swap.old.sha256) for swap in self.swaps}
        folder = join(self.source_folder, "index")
        for uri in list_files(folder, ".parquet"):
            if not posixpath.basename(uri).startswith("part-"):
                continue
            file = hash_file(uri)
            with contextlib.suppress(IntegrityError):  # a part that cannot be read goes with the others
                if not any((member.listed.uri, member.sha256) in old for member in read_part(file).members):
                    continue
            hashes = join(folder, f"phash-{file.sha256[:24]}.parquet")
            yield from (uri, *((hashes,) if exists(hashes) else ()))

    def remove(self, planned: Sequence[Gone]) -> int:
        """Remove what was planned, and every other version of the old shards; returns unfinished uploads aborted."""
        uploads = 0
        for swap in self.swaps:
            for version in versions(swap.old.uri):
                if not self._stays(swap, version):
                    remove(version)
            uploads += abort_uploads(swap.old.uri)
        done = {self._page, *(swap.old.uri for swap in self.swaps)}
        old = [
            version for uri in dict.fromkeys(item.uri for item in planned if item.uri not in done) for version in versions(uri)
        ]
        for version in (*old, *self._old_pages()):
            remove(version)
        return uploads

    def sweep(self, packed: PackedSource, gone: Sequence[Gone], stones: Tombstones) -> dict[str, int]:
        """Look whether anything is left.

        Returns:
            What was looked at, and how many of it.

        Raises:
            IntegrityError: something is still there.
        """
        stays = {swap.target: swap for swap in self.swaps if swap.in_place}
        for uri in dict.fromkeys(item.uri for item in gone):
            found = self._old_pages() if uri == self._page else versions(uri)
            left = [version for version in found if not (uri in stays and self._stays(stays[uri], version))]
            if left:
                raise IntegrityError(f"{uri}: still there after it was removed", "run the same command again")
        parts = [dataclasses.replace(ref, uri=join(self.source_folder, ref.uri)) for ref in packed.index]
        listed = count_listed(parts, stones, len(packed.classes))
        if listed:
            raise IntegrityError(
                f"{self.source_folder}: {listed} deleted images are still in the index", "run the same command again"
            )
        rows = sum(shard.samples for shard in packed.shards)
        return {"objects": len({item.uri for item in gone}), "versions": len(gone), "index_rows": rows}

    def elsewhere(self, stones: Tombstones) -> list[str]:
        """Other runs below the same output whose own shards hold some of the images, in words."""
        found = []
        for uri in list_files(self.config.output, "/shards/index.parquet"):
            if uri == join(self.folder, "shards", "index.parquet"):
                continue
            count = count_listed([hash_file(uri)], stones, 0)
            if count:
                run = uri.removesuffix("/shards/index.parquet")
                found.append(f"{run}: {count} of the images in shards of this run: remove its folder, or erase its batch")
        return found

    def unlisted(self) -> list[str]:
        """What this program cannot look into, in words."""
        blind = sorted({swap.old.uri.split("://")[0] for swap in self.swaps if not knows_versions(swap.old.uri)})
        return [f"{scheme}://: older versions of the removed objects cannot be listed here" for scheme in blind]


def count_listed(parts: Sequence[FileRef], stones: Tombstones, classes: int) -> int:
    """How many rows of some index files have a tombstone, by key and by image."""
    keys = frozenset(stones.keys)
    wanted = Wanted(digests=tuple(bytes.fromhex(image) for image in stones.images))
    chosen = choose(parts, wanted, classes)
    return sum(hashlib.sha256(key.encode()).hexdigest() in keys for key in chosen.keys)


def _copy(rest: ShardRef, target: str) -> None:
    """Publish the rest of a shard at its place; nothing appears if its bytes are not the recorded ones."""
    with open_read(rest.uri) as stream, publish(target) as out:
        while block := stream.read(BLOCK):
            out.write(block)
        if out.ref.sha256 != rest.sha256:
            raise IntegrityError(f"{rest.uri}: not the bytes that the manifest names", "run the shard stage again")
