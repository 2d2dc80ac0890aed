"""The key index of a list of shards: key -> shard, offset, size, label, digest, as Parquet parts of some shards each.

A part's name is a digest of its shards' names and stamps. So a part that is there need not be built again, whoever
built it: an earlier attempt, another rank, another task of an array, or the last refresh. Rows of a shard that did not
change are copied from the part that had them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.data.listing import Listed, parts_of
from pipeline.data.progress import Progress
from pipeline.data.rows import SCHEMA, KeysDigest, key_hash, open_index, read_columns, read_row_group, write_index
from pipeline.data.shards import Fault, Sample, read_shard
from pipeline.decode import canonical, decode, digest, plain
from pipeline.errors import DataError, IntegrityError, StorageError
from pipeline.records import FileRef, ShardRef, record
from pipeline.storage import exists, hash_file, is_s3, join

__all__ = ["Index", "Member", "Part", "build_index", "map_shards", "read_part", "sample_table"]

Task = TypeVar("Task")
Answer = TypeVar("Answer")

# A worker costs about half a second to start: below this many shards each, fewer workers are faster.
SHARDS_PER_WORKER = 8
HASHES_AT_ONCE = 16_000_000
READINGS = 3
MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@record
class Member:
    """A shard in a part. `row_group` is -1 where no sample of it is good."""

    listed: Listed
    sha256: str
    bytes: int
    samples: int
    keys_digest: str
    row_group: int
    faults: tuple[Fault, ...]


@record
class Part:
    """An index file and the shards whose rows it holds."""

    file: FileRef
    members: tuple[Member, ...]


@record
class Index:
    """All parts, in the order of the shards."""

    parts: tuple[Part, ...]

    @property
    def shards(self) -> tuple[ShardRef, ...]:
        """Every shard with good samples."""
        return tuple(
            ShardRef(
                uri=member.listed.uri,
                sha256=member.sha256,
                bytes=member.bytes,
                samples=member.samples,
                origin="original",
                keys_digest=member.keys_digest,
                index=part.file.uri,
                row_group=member.row_group,
            )
            for part in self.parts
            for member in part.members
            if member.samples
        )

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What was set aside."""
        return tuple(fault for part in self.parts for member in part.members for fault in member.faults)


@record
class _Old:
    """A shard's rows in an earlier part."""

    part: FileRef
    member: Member


@record
class _Task:
    shards: tuple[Listed, ...]
    target: str
    on_error: str
    old: tuple[_Old | None, ...]
    refused: frozenset[bytes]


def map_shards(work: Callable[[Task], Answer], tasks: Sequence[Task], *, workers: int = 0) -> Iterable[Answer]:
    """Do `work` for each task, in order, in processes where there are enough tasks.

    Args:
        work: a module-level function of one task.
        tasks: picklable tasks, about one shard each.
        workers: processes; 0 chooses for this machine and this number of tasks.
    """
    workers = workers or min(len(os.sched_getaffinity(0)), len(tasks) // SHARDS_PER_WORKER)
    if workers < 2 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    # Spawned, not forked: the parent may hold threads of torch or of fsspec.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(work, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def sample_table(samples: Sequence[Sample]) -> pa.Table:
    """Rows of one shard, in `SCHEMA`."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in SCHEMA.names if name != "key_hash"}
    return pa.Table.from_pydict({**columns, "key_hash": [key_hash(sample.key) for sample in samples]}, schema=SCHEMA)


def _read(shard: Listed, on_error: str) -> tuple[list[Sample], ShardRef, tuple[Fault, ...]]:
    """Read a shard for the first time. There is no digest yet to compare its bytes with, but where an object was uploaded in
    one part, S3 names it by its MD5, unless it is encrypted there: then two readings must agree.

    Raises:
        IntegrityError: the bytes are others each time.
    """
    etag = MD5.fullmatch(shard.stamp) if is_s3(shard.uri) else None
    seen: set[str] = set()
    for _ in range(READINGS):
        mark = hashlib.md5(usedforsecurity=False)
        found = read_shard(shard.uri, on_error=on_error, also=mark if etag else None)  # type: ignore[arg-type]
        if etag is None or etag[1] == mark.hexdigest() or found[1].sha256 in seen:
            return found
        seen.add(found[1].sha256)
    raise IntegrityError(f"{shard.uri}: other bytes at each of {READINGS} readings", "look at the network or the store")


def _member(shard: Listed, task: _Task, row_group: int, old: _Old | None) -> tuple[Member, pa.Table | None]:
    """A shard's place in a part and its rows, copied where the shard did not change, else read."""
    if old is not None and old.member.listed == shard and not (old.member.faults and task.on_error == "stop"):
        rows = read_row_group(old.part.uri, old.part.sha256, old.member.row_group) if old.member.samples else None
        return dataclasses.replace(old.member, row_group=row_group if rows is not None else -1), rows
    samples, ref, faults = _read(shard, task.on_error)
    rows = sample_table(samples) if samples else None
    _refuse_deleted(shard.uri, ((sample.key, sample.sha256) for sample in samples), task.refused, old)
    keys = KeysDigest()
    for sample in samples:
        keys.add(sample.key)
    member = Member(
        listed=shard,
        sha256=ref.sha256,
        bytes=ref.bytes,
        samples=len(samples),
        keys_digest=keys.hex(),
        row_group=row_group if samples else -1,
        faults=faults,
    )
    return member, rows


def _images(part: FileRef, member: Member) -> list[tuple[str, bytes]]:
    """Key and digest of each image of a shard in a part."""
    if not member.samples:
        return []
    rows = read_row_group(part.uri, part.sha256, member.row_group)
    return list(zip(rows["key"].to_pylist(), rows["sha256"].to_pylist(), strict=True))


def _refuse_deleted(uri: str, images: Iterable[tuple[str, bytes]], refused: frozenset[bytes], old: _Old | None) -> None:
    """An image that was deleted on request must not come back. What lay in this shard before may wait for its erasure."""
    back = [image for image in images if image[1] in refused] if refused else []
    if back and old is not None:
        known = frozenset(_images(old.part, old.member))
        back = [image for image in back if image not in known]
    if back:
        more = f" and {len(back) - 1} more" if len(back) > 1 else ""
        message = f"{uri}: key '{back[0][0]}'{more}: this image was deleted on request and has a tombstone"
        raise DataError(message, "take the image out of the shard")


def _refuse_returned(part: Part, task: _Task) -> None:
    """A part may be older than a tombstone: of a shard that went and came back, or of an earlier attempt."""
    for member, old in zip(part.members, task.old, strict=True):
        if task.refused and (old is None or old.member.listed != member.listed):
            _refuse_deleted(member.listed.uri, _images(part.file, member), task.refused, old)


def _build(task: _Task) -> Part:
    if exists(task.target):
        try:
            part = _stored(hash_file(task.target), task.shards)
        except (IntegrityError, StorageError):
            pass  # half written by hand or damaged: built again
        else:
            _refuse_returned(part, task)
            return part
    members: list[Member] = []
    tables: list[pa.Table] = []
    for shard, old in zip(task.shards, task.old, strict=True):
        member, rows = _member(shard, task, len(tables), old)
        members.append(member)
        tables += [rows] if rows is not None else []
    file = write_index(task.target, tables, meta=canonical([*members]))
    return Part(file=file, members=tuple(members))


def read_part(file: FileRef) -> Part:
    """A published part, from its own metadata. Raises IntegrityError where it was changed."""
    try:
        meta = json.loads(open_index(file.uri, file.sha256).meta)
    except ValueError:
        raise IntegrityError(f"{file.uri}: not a part of an index", "remove the file; it is made again") from None
    return decode(Part, {"file": plain(file), "members": meta}, where=file.uri, error=IntegrityError)


def _stored(file: FileRef, shards: Sequence[Listed]) -> Part:
    part = read_part(file)
    if tuple(member.listed for member in part.members) != tuple(shards):
        raise IntegrityError(f"{file.uri}: holds other shards than its name says", "remove the file")
    return part


def build_index(
    lists: Sequence[Sequence[Listed]],
    folder: str,
    *,
    on_error: str = "stop",
    max_quarantined: int = 100,
    before: Index | None = None,
    refused: frozenset[bytes] = frozenset(),
    task: tuple[int, int] = (0, 1),
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Index]:
    """Read the shards that are new or changed and index them all; the result does not depend on workers or tasks.

    Args:
        lists: shards in order, as the storage lists them now: the training shards, and the unseen ones.
        folder: where parts are published.
        on_error: `stop` at the first faulty shard or sample, or `quarantine` them.
        max_quarantined: more faults than this raise DataError.
        before: the index before, whose rows of unchanged shards are used again.
        refused: sha256 of images that must not come in again.
        task: (i, n): build every n-th part, from the i-th on, and return these only.
        workers: processes; 0 chooses for this machine.
        progress: told the number of samples read so far.

    Returns:
        One index a list. With n > 1 they hold this task's parts only.

    Raises:
        DataError: a bad shard or sample, a key that lies in two shards, an image with a tombstone.
    """
    known: Mapping[str, _Old] = {
        member.listed.uri: _Old(part=part.file, member=member)
        for part in (before.parts if before else ())
        for member in part.members
    }
    listed = [shard for shards in lists for shard in shards]
    tasks, home = [], []
    for number, shards in ((number, part) for number, all_of in enumerate(lists) for part in parts_of(all_of)):
        name = digest([1, on_error, [(shard.uri, shard.bytes, shard.stamp) for shard in shards]])[:24]
        old = tuple(known.get(shard.uri) for shard in shards)
        target = join(folder, f"part-{name}.parquet")
        tasks.append(_Task(shards=shards, target=target, on_error=on_error, old=old, refused=refused))
        home.append(number)
    # memory:// lives in this process alone.
    alone = any(shard.uri.startswith("memory://") for shard in listed) or folder.startswith("memory://")
    mine = range(task[0], len(tasks), task[1])
    parts: list[list[Part]] = [[] for _ in lists]
    done = 0
    built = map_shards(_build, [tasks[number] for number in mine], workers=1 if alone else workers or _workers(listed))
    for number, part in zip(mine, built, strict=True):
        parts[home[number]].append(part)
        done += sum(member.samples for member in part.members)
        if progress is not None:
            progress("index", done)
    indexes = [Index(parts=tuple(found)) for found in parts]
    faults = [fault for index in indexes for fault in index.faults]
    if len(faults) > max_quarantined:
        first = faults[0]
        message = f"{first.uri}: {first.key}: {first.reason}; {len(faults)} faults in all, more than {max_quarantined}"
        raise DataError(message, f"{first.cure}; or raise shards.max_quarantined")
    if task[1] == 1:
        _refuse_twins(Index(parts=tuple(part for found in parts for part in found)))
    return indexes


def _workers(listed: Sequence[Listed]) -> int:
    return max(1, min(len(os.sched_getaffinity(0)), len(listed) // SHARDS_PER_WORKER))


def _refuse_twins(index: Index) -> None:
    """DataError for a key in two shards. Hashes are compared range by range, so that memory stays bounded: they go to one
    temporary file a range first, in one reading of the index."""
    samples = sum(member.samples for part in index.parts for member in part.members)
    ranges = max(1, -(-samples // HASHES_AT_ONCE))
    edges = np.array([(number << 64) // ranges for number in range(1, ranges)], dtype=np.uint64)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(ranges)]
        for part in index.parts:
            hashes = np.sort(read_columns(part.file.uri, part.file.sha256, ["key_hash"])[0]["key_hash"].to_numpy())
            for file, some in zip(files, np.split(hashes, np.searchsorted(hashes, edges)), strict=True):
                file.write(some.tobytes())
        for file in files:
            file.seek(0)
            together = np.sort(np.frombuffer(file.read(), dtype=np.uint64))
            twins = together[:-1][together[1:] == together[:-1]]
            if len(twins):
                _name_twins(index, set(twins.tolist()))


def _name_twins(index: Index, hashes: set[int]) -> None:
    homes: dict[str, str] = {}
    for shard in index.shards:
        ref = next(part.file for part in index.parts if part.file.uri == shard.index)
        rows = read_row_group(ref.uri, ref.sha256, shard.row_group)
        for key, mark in zip(rows["key"].to_pylist(), rows["key_hash"].to_pylist(), strict=True):
            if mark in hashes:
                home = homes.setdefault(key, shard.uri)
                if home != shard.uri:
                    raise DataError(f"{shard.uri}: key '{key}': also in {home}", "give each sample a key of its own")
