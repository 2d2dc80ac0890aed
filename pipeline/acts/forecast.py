"""What a batch would do to a source that is indexed already, read from the index alone."""

from __future__ import annotations

from pipeline import component
from pipeline.data.batch import Settings, Source, select
from pipeline.data.pack import load_source, source_folder
from pipeline.errors import StorageError
from pipeline.orders import BatchOrder, Forecast

__all__ = ["run"]


def run(order: BatchOrder) -> Forecast:
    """Find the images and shards of a batch; nothing is written. Near copies are not looked for.

    Raises:
        ConfigError: a request that means nothing, or everything.
        StorageError: the source is not indexed yet.
    """
    config = order.config
    source, name = component.build("source", config.source), config.source["component"]
    _, folder = source_folder(source, name=name, output=config.output)
    packed = load_source(folder)
    if packed is None:
        raise StorageError(f"{folder}: the source is not indexed yet", "run `unlearn index`, or the run itself")
    view = Source(packed, folder)
    found = select(order.batch, view, Settings())
    rewrite = [view.training[home] for home in sorted(set(view.homes(found.chosen).tolist()))]
    forgotten, whole = len(found.chosen), sum(shard.samples for shard in view.training)
    total, cut = (sum(shard.bytes for shard in shards) for shards in (view.training, rewrite))
    # What is taken out weighs about as much as what stays: exact only when it is written.
    share = forgotten / max(1, sum(shard.samples for shard in rewrite))
    return Forecast(
        forget_samples=forgotten,
        retain_samples=whole - forgotten,
        shards_clean=len(view.training) - len(rewrite),
        rewrite=tuple(shard.uri for shard in rewrite),
        bytes_to_rewrite=cut,
        index_bytes=sum(ref.bytes for ref in view.files.values()),
        bytes_of={
            "original": total,
            "retain": total - round(share * cut),
            "forget": round(share * cut),
            "unseen": sum(shard.bytes for shard in view.unseen),
        },
        groups=tuple(f"{group.name} ({group.kind}, {group.samples} images)" for group in found.groups),
    )
