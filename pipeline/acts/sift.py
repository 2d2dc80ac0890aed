"""Which requests of a batch mean no image at all, so that one of them does not hold up the others."""

from __future__ import annotations

from pipeline import component
from pipeline.acts.lookup import unknown_values
from pipeline.data.batch import Source
from pipeline.data.pack import load_source, source_folder
from pipeline.data.selection import choose, wanted_by
from pipeline.errors import ConfigError
from pipeline.orders import BatchOrder, SiftAnswer
from pipeline.records import DeletionRequest, RequestBatch

__all__ = ["run"]


def run(order: BatchOrder) -> SiftAnswer:
    """Look every request's values up in the index; a request is named where one of its values means no training image."""
    config = order.config
    source, name = component.build("source", config.source), config.source["component"]
    _, folder = source_folder(source, name=name, output=config.output)
    packed = load_source(folder)
    if packed is None:
        return SiftAnswer(indexed=False)
    bad = {request.request_id for request in order.batch.requests if not _possible(request, packed.classes)}
    rest = RequestBatch(requests=tuple(request for request in order.batch.requests if request.request_id not in bad))
    view, wanted = Source(packed, folder), wanted_by(rest, packed.classes)
    chosen = choose(view.parts(view.training), wanted, len(packed.classes))
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


def _possible(request: DeletionRequest, classes: tuple[str, ...]) -> bool:
    """Whether all its values have a form that could mean an image: labels of classes, digests of 64 digits."""
    try:
        wanted_by(RequestBatch(requests=(request,)), classes)
    except ConfigError:
        return False
    return True
