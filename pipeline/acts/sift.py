"""Which requests of a batch mean no image at all, so that one of them does not hold up the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline import component
from pipeline.acts.lookup import unknown_values
from pipeline.data.alike import BITS_APART, spell_out
from pipeline.data.batch import Source
from pipeline.data.likeness import hash_images
from pipeline.data.pack import load_source, source_folder
from pipeline.data.progress import in_lines
from pipeline.data.selection import choose, wanted_by
from pipeline.errors import ConfigError
from pipeline.records import DeletionRequest, FileRef, RequestBatch
from pipeline.schedule_orders import SiftAnswer, SiftOrder
from pipeline.storage import join

__all__ = ["run"]


def run(order: SiftOrder) -> SiftAnswer:
    """Look every request's values up in the index; a request is named where one of its values means no training image.

    Requests for what looks like an image are judged one by one.
    """
    config = order.config
    source, name = component.build("source", config.source), config.source["component"]
    _, folder = source_folder(source, name=name, output=config.output)
    packed = load_source(folder)
    if packed is None:
        return SiftAnswer(indexed=False)
    view = Source(packed, folder)
    parts = view.parts(view.training)
    bad = set(_unlike(order, view, parts))
    spelt = [request for request in order.batch.requests if request.selector.kind != "likeness"]
    bad |= {request.request_id for request in spelt if not _possible(request, packed.classes)}
    rest = RequestBatch(requests=tuple(request for request in spelt if request.request_id not in bad))
    wanted = wanted_by(rest, packed.classes)
    chosen = choose(parts, wanted, len(packed.classes))
    asking: dict[tuple[str, str], list[str]] = {}
    for request in rest.requests:
        for value in request.selector.values:
            asking.setdefault((request.selector.kind, value), []).append(request.request_id)
    values, places = list(asking), dict[str, dict[str, int]]()
    for place, (kind, value) in enumerate(values):
        places.setdefault(kind, {})[value] = place
    for place, _ in unknown_values(places, wanted, chosen, packed.classes):
        bad.update(asking[values[place]])
    return SiftAnswer(indexed=True, unmatched=tuple(sorted(bad)))


def _unlike(order: SiftOrder, view: Source, parts: Sequence[FileRef]) -> Iterator[str]:
    """Requests for what looks like an image, and nothing does."""
    asked = [request for request in order.batch.requests if request.selector.kind == "likeness"]
    if not asked:
        return
    config = order.config
    bits = BITS_APART if config.shards.near_bits is None else config.shards.near_bits
    place = join(view.folder, "index")
    hashes = hash_images(view.training, parts, place, max_pixels=config.images.max_pixels, progress=in_lines(print))
    for request in asked:
        try:
            spell_out(RequestBatch(requests=(request,)), parts=parts, hashes=hashes, bits=bits)
        except ConfigError:
            yield request.request_id


def _possible(request: DeletionRequest, classes: tuple[str, ...]) -> bool:
    """Whether all its values have a form that could mean an image: labels of classes, digests of 64 digits."""
    try:
        wanted_by(RequestBatch(requests=(request,)), classes)
    except ConfigError:
        return False
    return True
