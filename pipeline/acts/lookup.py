"""What values of requests mean in the index of a run's source, before the ledger takes them in."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline import component
from pipeline.data.alike import BITS_APART, spell_out
from pipeline.data.batch import Source
from pipeline.data.likeness import hash_images
from pipeline.data.pack import load_source, source_folder
from pipeline.data.progress import in_lines
from pipeline.data.selection import Chosen, Wanted, choose, wanted_by
from pipeline.ledger.refusals import Looked
from pipeline.ledger.tables import RowFile
from pipeline.records import DeletionRequest, RequestBatch, Selector
from pipeline.request_orders import LookupAnswer, LookupOrder
from pipeline.storage import join

__all__ = ["run"]


def run(order: LookupOrder) -> LookupAnswer:
    """Count the training images that the values mean, all together.

    Raises:
        ConfigError: a label that is no class, or a likeness that no image has.
        DataError: a file of requests that is not readable.
    """
    config = order.config
    source, name = component.build("source", config.source), config.source["component"]
    _, folder = source_folder(source, name=name, output=config.output)
    packed = load_source(folder)
    if packed is None:
        return LookupAnswer(looked=None)
    view = Source(packed, folder)
    places: dict[str, dict[str, int]] = {}
    for kind, value, place in _values(order):
        places.setdefault(kind, {}).setdefault(value, place)
    requests = tuple(
        DeletionRequest(request_id=kind, selector=Selector(kind=kind, values=tuple(values)))  # type: ignore[arg-type]
        for kind, values in places.items()
    )
    batch, parts = RequestBatch(requests=requests), view.parts(view.training)
    if places.pop("likeness", None):
        bits = BITS_APART if config.shards.near_bits is None else config.shards.near_bits
        index = join(folder, "index")
        hashes = hash_images(view.training, parts, index, max_pixels=config.images.max_pixels, progress=in_lines(print))
        batch = spell_out(batch, parts=parts, hashes=hashes, bits=bits)
    wanted = wanted_by(batch, packed.classes)
    chosen = choose(parts, wanted, len(packed.classes))
    unknown = sorted(unknown_values(places, wanted, chosen, packed.classes))
    first, kind = unknown[0] if unknown else (0, "")
    training = int(chosen.label_counts.sum())
    return LookupAnswer(
        looked=Looked(images=len(chosen), training=training, unknown=len(unknown), first=first, kind=kind.removesuffix("s"))
    )


def _values(order: LookupOrder) -> Iterator[tuple[str, str, int]]:
    """Kind, value and place of all values that are asked for."""
    if order.file:
        with RowFile(order.file) as file:
            for number, row in file.rows():
                yield file.kind_of(row), row["value"], number
        return
    for request in order.batch.requests:
        for number, value in enumerate(request.selector.values, start=1):
            yield request.selector.kind, value, number


def unknown_values(
    places: dict[str, dict[str, int]], wanted: Wanted, chosen: Chosen, classes: tuple[str, ...]
) -> Iterator[tuple[int, str]]:
    """Place and kind of the values, given as kind -> value -> place, that mean no training image."""
    keys, marks = set(chosen.keys), {mark.hex() for mark in chosen.digests}
    begun = {length: {key[:length] for key in keys} for length in wanted.prefix_sets}
    labels = {str(name) for number, name in enumerate(classes) if chosen.label_counts[number]}
    labels |= {str(number) for number in range(len(classes)) if chosen.label_counts[number]}
    for kind, values in places.items():
        for value, place in values.items():
            known = {
                "keys": value in keys,
                "digest": value.lower() in marks,
                "label": value in labels,
                "prefix": value in begun.get(len(value), ()),
            }
            if not known[kind]:
                yield place, kind
