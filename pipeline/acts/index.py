"""Build or refresh the index of a source."""

from __future__ import annotations

from pipeline import component
from pipeline.data.pack import pack
from pipeline.data.progress import in_lines
from pipeline.data.sources.base import ShardSource
from pipeline.errors import ConfigError
from pipeline.orders import IndexAnswer, IndexOrder

__all__ = ["run"]


def run(order: IndexOrder) -> IndexAnswer:
    """Index the source where it lies, or pack it first.

    Raises:
        ConfigError: tasks for a source that must be packed, or a task number beyond their count.
        DataError: a faulty shard or sample, where faults stop.
        StorageError: a shard that is not there, or a storage that refuses.
    """
    source, (number, tasks) = component.build("source", order.source), order.task
    if not 0 <= number < tasks:
        raise ConfigError(f"--task {number}/{tasks}: tasks are numbered from 0", f"write 0/{tasks} to {tasks - 1}/{tasks}")
    if tasks > 1 and not isinstance(source, ShardSource):
        raise ConfigError(f"source {order.source['component']}: packed by one task only", "leave --task out")
    name = order.source["component"]
    packed, folder = pack(
        source, name=name, output=order.output, settings=order.shards, task=order.task, progress=in_lines(print)
    )
    if packed is None:
        return IndexAnswer(folder=folder, complete=False)
    return IndexAnswer(
        folder=folder,
        complete=True,
        generation=packed.generation,
        shards=len(packed.shards),
        training=sum(shard.samples for shard in packed.training),
        unseen=sum(shard.samples for shard in packed.unseen),
        bytes=sum(shard.bytes for shard in packed.shards),
        classes=len(packed.classes),
        quarantine=tuple(f"{fault.uri}: {fault.key}: {fault.reason}" for fault in packed.quarantine),
    )
