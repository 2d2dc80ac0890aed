"""What is done beside the chain, by a worker: index a source, set tombstones, foretell a batch, erase it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from launch import torchrun
from launch.show import size_text
from launch.worker import run_worker
from pipeline.config import LaunchConfig, packaged, packaged_section
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.orders import ErasurePlan, IndexAnswer, IndexOrder
from pipeline.records import Erasure
from pipeline.storage import absolute, exists, list_files
from pipeline.written import NotYAML, load

__all__ = ["answer_lines", "carry_out", "erasure_lines", "find_run", "index_order", "plan_lines"]

T = TypeVar("T")
SHOWN = 20


def carry_out(act: str, order: Any, answer: type[T], *, to_stderr: bool = False) -> T:
    """Send an order to a worker and wait for its answer.

    Args:
        act: a name in `pipeline.orders.ACTS`.
        order: its order.
        answer: the class of the answer.
        to_stderr: keep standard output free, for JSON.

    Raises:
        UnlearnError: what refused or failed, as the worker named it.
    """
    with tempfile.TemporaryDirectory(prefix="unlearn-") as scratch:
        file = os.path.join(scratch, "order.json")
        Path(file).write_bytes(canonical(order))
        run_worker(torchrun.worker_job(act, file, torchrun.resources(LaunchConfig())), what=act, to_stderr=to_stderr)
        found = json.loads(Path(scratch, "answer.json").read_bytes())
    return decode(answer, found, where=f"answer of {act}", error=IntegrityError)


def index_order(source: str, overrides: list[str], *, output: str, on_error: str, max_quarantined: int, task: str) -> IndexOrder:
    """The order that `unlearn index` gives.

    Args:
        source: name of a source, or any fsspec URI: a folder of tars, a glob, a brace pattern.
        overrides: `field=value` of the source.
        output: folder below which packed sources lie.
        on_error: `stop` or `quarantine`.
        max_quarantined: more faults end the act.
        task: `I/N`, or empty.

    Raises:
        ConfigError: a task that is not of that form, or an unknown source or field.
    """
    number, mark, tasks = (task or "0/1").partition("/")
    if not mark or not number.isdecimal() or not tasks.isdecimal() or int(tasks) < 1:
        raise ConfigError(f"--task {task}: not of the form I/N", "write e.g. --task 0/8")
    fields: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"'{text}': not of the form field=value", "write e.g. root=/data/photos")
        try:
            fields[name] = load(value)
        except NotYAML:
            fields[name] = value
    address = any(mark in source for mark in "/*{") or source.endswith(".tar") or os.path.isdir(source)
    address = address and source not in packaged("source")  # a folder that happens to be called like a source
    section: dict[str, Any] = {"component": "webdataset", "training": [source]} if address else {"component": source}
    order = {
        "source": packaged_section("source", {**section, **fields}, "unlearn index"),
        "output": absolute(output),
        "shards": {"on_error": on_error, "max_quarantined": max_quarantined},
        "task": (int(number), int(tasks)),
    }
    return decode(IndexOrder, order, where="unlearn index")


def answer_lines(answer: IndexAnswer) -> list[str]:
    """What `unlearn index` says at its end."""
    if not answer.complete:
        return [f"this task's parts of the index are done: {answer.folder}", "run once without --task to put them together"]
    images = f"{answer.training} training and {answer.unseen} unseen images of {answer.classes} classes"
    lines = [
        f"{images} in {answer.shards} shards ({size_text(answer.bytes)})",
        f"index: {answer.folder}, generation {answer.generation}",
    ]
    lines += [f"set aside: {fault}" for fault in answer.quarantine[:SHOWN]]
    if len(answer.quarantine) > SHOWN:
        lines.append(f"set aside: {len(answer.quarantine) - SHOWN} more, in {answer.folder}/source.json")
    return lines


def find_run(batch: str, output: str = "runs") -> str:
    """The run folder that a text means: a folder, a run's name below `output`, or digits of its batch digest.

    Raises:
        ConfigError: no run is meant, or several.
    """
    if exists(os.path.join(batch, "config.yaml") if "://" not in batch else f"{batch.rstrip('/')}/config.yaml"):
        return absolute(batch)
    below = [uri.removesuffix("/config.yaml") for uri in list_files(absolute(output), "/config.yaml")] if exists(output) else []
    names = {uri.rsplit("/", 1)[-1]: uri for uri in below}
    if batch in names:
        return names[batch]
    meant = [name for name in names if name.rsplit("-", 1)[-1].startswith(batch)] if len(batch) >= 4 else []
    if len(meant) == 1:
        return names[meant[0]]
    if meant:
        raise ConfigError(f"'{batch}': several runs are meant: {', '.join(sorted(meant))}", "name one run folder")
    raise ConfigError(f"'{batch}': no run folder, and no run below {output} is called so", "name a run folder")


def plan_lines(plan: ErasurePlan) -> list[str]:
    """What `unlearn erase` says before it asks."""
    what = f"{plan.versions} versions of files, {size_text(plan.bytes)}, will be removed for good"
    lines = [f"{plan.images} images are to be erased: {what}"]
    lines += [f"rewritten: {uri}" for uri in plan.replaced[:SHOWN]]
    if len(plan.replaced) > SHOWN:
        lines.append(f"rewritten: {len(plan.replaced) - SHOWN} more shards")
    lines += [f"removed: {uri}" for uri in plan.removed[:SHOWN]]
    lines += [f"not removed here: {text}" for text in plan.remaining]
    return lines


def erasure_lines(proof: Erasure, folder: str) -> list[str]:
    """What `unlearn erase` says at its end."""
    size = size_text(sum(item.bytes for item in proof.removed))
    done = f"erased {proof.images} images: {len(proof.removed)} versions of files, {size}, are gone and were looked for again"
    left = [f"not removed here: {text}" for text in proof.remaining]
    tier = "what may be claimed of the data (tier D): removed from storage; models that saw the images still contain it"
    return [done, *left, tier, f"source generation {proof.generation}; proof: {folder}/erasure.json"]
