"""The data-order ledger of a run: written as training goes on, found beside given weights, and read for a way back.

It lies in `order/<weights>.json` beside `checkpoints/`, sealed with its own digest. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pipeline.chain import read_receipt
from pipeline.claim import fence
from pipeline.config import RunConfig, section_digest
from pipeline.decode import canonical, decode, digest
from pipeline.errors import ConfigError, IntegrityError
from pipeline.findings import TrainingOrder
from pipeline.stages.runner import Job, read_verified
from pipeline.storage import exists, hash_file, join, publish_bytes, read_bytes, relative

__all__ = ["adopt", "known", "order_file", "read_order", "refuse_unknown", "rewind_point", "settings_of", "write_order"]

SETTINGS = ("model", "task", "images", "stream", "train")
"""Sections that decide what training makes of its samples. The engine's decide how fast."""


def settings_of(config: RunConfig) -> str:
    """Digest of the settings of training."""
    return section_digest(config, SETTINGS)


def order_file(weights: str) -> str:
    """Where the ledger of these weights lies, relative to the folder that holds `checkpoints/`."""
    return f"order/{weights}.json"


def write_order(home: str, order: TrainingOrder) -> None:
    """Publish a ledger sealed with its own digest."""
    fence()
    publish_bytes(join(home, order_file(order.weights)), canonical({"order": order, "sha256": digest(order)}))


def read_order(uri: str) -> TrainingOrder:
    """A ledger.

    Raises:
        IntegrityError: any byte of it was changed.
        StorageError: it is not there.
    """
    return _opened(read_bytes(uri), uri)


def _opened(content: bytes, uri: str) -> TrainingOrder:
    cure = "restore the file, or remove it and train again"
    try:
        order = decode(TrainingOrder, json.loads(content)["order"], where=uri, error=IntegrityError)
        intact = canonical({"order": order, "sha256": digest(order)}) == content
    except (ValueError, KeyError, TypeError, IntegrityError):
        raise IntegrityError(f"{uri}: not an order ledger", cure) from None
    if not intact:
        raise IntegrityError(f"{uri}: changed after it was written", cure)
    return order


def _beside(given: str) -> str:
    """Where the ledger of given weights would lie: in the run folder that they lie in, as training or as release left them."""
    parts = given.rsplit("/", 3)
    if len(parts) == 4 and parts[1] == "checkpoints":
        return join(parts[0], order_file(parts[2]))
    parts = given.rsplit("/", 2)
    return join(parts[0], order_file("unlearned")) if len(parts) == 3 and parts[1] == "weights" else ""


def adopt(given: str, *, home: str, output: str, weights: str) -> TrainingOrder | None:
    """The ledger beside given weights, as that of `weights` in `home`; None where there is none.

    Args:
        given: URI of the weights.
        home: folder into which it is taken over.
        output: root below which addresses are recorded relative to `home`.

    Raises:
        IntegrityError: it was changed, or is of other weights.
    """
    uri = _beside(given)
    if not uri or not exists(uri):
        return None
    order = read_order(uri)
    if len(order.trained) != order.slices or order.trained[-1].weights.sha256 != hash_file(given).sha256:
        raise IntegrityError(
            f"{uri}: the order of other weights than {given}", "restore both files, or move the weights elsewhere"
        )
    theirs = join(uri, "..", "..")
    trained = tuple(
        dataclasses.replace(
            item, weights=dataclasses.replace(item.weights, uri=relative(join(theirs, item.weights.uri), home, output))
        )
        for item in order.trained
    )
    return dataclasses.replace(order, weights=weights, trained=trained)


def known(job: Job, stage: str, uri: str) -> TrainingOrder | None:
    """The ledger that `stage` published in `uri`, checked against its receipt; None where it published none."""
    receipt = read_receipt(job.folder, stage)
    for ref in receipt.outputs if receipt else ():
        if ref.uri == uri:
            return _opened(read_verified(job, ref), job.path(uri))
    return None


def refuse_unknown(order: TrainingOrder | None, config: RunConfig) -> TrainingOrder:
    """The original's ledger, where the run can go back by it.

    Raises:
        ConfigError: there is none, or the run would cut the samples otherwise.
    """
    if order is None:
        cure = "name weights in a run folder that has order/ beside checkpoints/, or use method=retrain"
        raise ConfigError(f"method rewind: no order ledger beside {config.original}: rewinding cannot be proved", cure)
    if order.slices != config.train.slices:
        message = f"train.slices: {config.train.slices}, and the original was trained in {order.slices}"
        raise ConfigError(message, f"set train.slices={order.slices}")
    return order


def rewind_point(order: TrainingOrder, sets: Sequence[tuple[int, str]]) -> int:
    """How many slices of a training can be kept: the latest weights that have seen retained samples alone.

    Args:
        order: of the training.
        sets: number and digest of the retained samples in slices 1 to r, for each r; see `Slicing.sets`.

    Returns:
        The last stage whose set, and that of each stage before it, is that of the retained samples; 0 where the first one
        already differs, and only random weights are without the forgotten ones.
    """
    kept = 0
    for item, (samples, found) in zip(order.trained, sets, strict=True):
        if (item.samples, item.set_digest) != (samples, found):
            break
        kept += 1
    return kept
