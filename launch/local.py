"""Run the chain on this machine: check first, then lock the run folder, then one process group per stage.

Nothing is written before the configuration, the requests and all parts have been decoded. A run that is refused by its
first stage, when the data is looked at, leaves no folder behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launch import torchrun
from launch.forkserver import ForkServer, serving
from launch.worker import run_worker, terminable
from pipeline.chain import CHAIN, StageSpec, chain_for, current_receipt, read_receipt
from pipeline.claim import VARIABLE, owning
from pipeline.config import RunConfig, run_folder
from pipeline.decode import canonical, decode, plain
from pipeline.errors import CheckpointError, ConfigError, GateFailed, IntegrityError, Preempted, StorageError, UnlearnError
from pipeline.records import RequestBatch, record
from pipeline.requests import batch_digest
from pipeline.storage import exists, is_local, join, lock, publish_bytes, read_bytes, remove_tree
from pipeline.written import dump

__all__ = [
    "MethodFailed",
    "Outcome",
    "check_parts",
    "patient_lock",
    "prepare_folder",
    "read_report",
    "refuse_erased",
    "refuse_failed",
    "refuse_other_batch",
    "remove_parts",
    "run_chain",
    "stages_to_run",
]

LOCK_SECONDS = 45.0
"""A little longer than an agent that lost its command gives its ranks to save their state, before it kills them."""
Say = Callable[[str], None]


@record
class Outcome:
    """What one `unlearn run` did: the stages it ran and those that were up to date."""

    folder: str
    ran: tuple[str, ...]
    current: tuple[str, ...]


class MethodFailed(Exception):
    """In a comparison one method failed by its own fault, after the stages `ran`; the others can go on without it."""

    def __init__(self, method: str, stage: str, fault: UnlearnError, ran: tuple[str, ...] = ()) -> None:
        super().__init__(f"{stage}: {fault.message}")
        self.method, self.stage, self.fault, self.ran = method, stage, fault, ran


def stages_to_run(config: RunConfig, folder: str) -> list[StageSpec]:
    """The stages that have no receipt for this configuration and these inputs."""
    return [spec for spec in chain_for(config) if current_receipt(config, folder, spec) is None]


def refuse_other_batch(folder: str, wanted: str) -> None:
    """Raise ConfigError when the folder serves a batch of another digest than `wanted`: two must not mix in one model."""
    for name in ("manifest.json", "shards/batch.json"):
        uri = join(folder, name)
        if not exists(uri):
            continue
        try:
            content = json.loads(read_bytes(uri))
            is_batch = name.endswith("batch.json")
            found = batch_digest(decode(RequestBatch, content, where=uri)) if is_batch else content["batch_digest"]
        except (ValueError, KeyError, TypeError, ConfigError):
            raise IntegrityError(f"{uri}: changed after it was written", "restore it, or remove the run folder") from None
        if found != wanted:
            raise ConfigError(f"{folder}: output folder belongs to another batch ({name})", "choose another output= or name=")


def refuse_erased(folder: str) -> None:
    """Raise ConfigError when the run's images were erased: there is nothing left that it could read again."""
    if exists(join(folder, "erasure.json")) or exists(join(folder, "erasure-plan.json")):
        message = f"{folder}: the images of this run were erased from the source"
        raise ConfigError(message, "its model, report and proof stay; to run again, choose another name=")
    if exists(join(folder, "retired.json")):
        message = f"{folder}: checkpoints of this run were removed by its keep policy"
        raise ConfigError(message, "its model and report stay; to run again, choose another name=")


def _saved(config: RunConfig) -> bytes:
    """The configuration that the run folder keeps: no raw keys, and no path to a file that holds them."""
    bare = dataclasses.replace(config, requests="", embedded_requests=())
    return dump(plain(bare)).encode()


def check_parts(config: RunConfig, *, to_stderr: bool = False, forks: ForkServer | None = None) -> None:
    """Decode every part and build the model in a worker, because parts may import torch. Writes nothing that stays."""
    for field, uri in (("original", config.original), ("reference", config.reference)):
        if uri not in ("train", "retrain", "none") and not exists(uri):
            raise ConfigError(f"run {config.name}: {field}: {uri}: not found", "correct the path of the weights")
    with tempfile.TemporaryDirectory(prefix="unlearn-") as scratch:
        file = os.path.join(scratch, "config.yaml")
        Path(file).write_bytes(_saved(config))
        job = torchrun.worker_job("check", file, torchrun.resources(config.launch))
        run_worker(job, what=f"check of run {config.name}", to_stderr=to_stderr, forks=forks)


@contextlib.contextmanager
def patient_lock(folder: str, say: Say) -> Iterator[int | None]:
    """The folder's lock; ranks of a run that was killed a moment ago need some seconds to go."""
    deadline, told = time.monotonic() + LOCK_SECONDS, False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                handle = stack.enter_context(lock(folder))
                break
            except StorageError as fault:
                busy = isinstance(fault.__context__, BlockingIOError)
                if not busy or time.monotonic() > deadline:
                    raise
            if not told:
                say(f"waiting for another run to leave {folder}")
                told = True
            time.sleep(0.2)
        yield handle


@contextlib.contextmanager
def _no_trace_of_refusal(folder: str) -> Iterator[None]:
    """Remove the folders that the body made when it is refused before any stage has finished."""
    missing: list[Path] = []
    if is_local(folder):
        missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    try:
        yield
    except Preempted:
        raise
    except UnlearnError:
        kept = ("shards/copies.csv", *(f"receipts/{spec.name}.json" for spec in CHAIN))  # the refusal names the list of copies
        if missing and not any(exists(join(folder, name)) for name in kept):
            remove_tree(folder)
            for path in missing[1:]:
                with contextlib.suppress(OSError):  # Another run may have begun to live beside this one.
                    path.rmdir()
        raise


def _publish_if_new(uri: str, content: bytes) -> None:
    if not exists(uri) or read_bytes(uri) != content:
        publish_bytes(uri, content)


def prepare_folder(config: RunConfig, batch: RequestBatch, folder: str) -> None:
    """Write into a run folder that is ours what its stages read first: the configuration and the requests."""
    refuse_other_batch(folder, batch_digest(batch))
    _publish_if_new(join(folder, "config.yaml"), _saved(config))
    _publish_if_new(join(folder, "shards", "batch.json"), canonical(batch))


def remove_parts(folder: str) -> None:
    """Remove unpublished files and folders of a rank that was killed while it wrote; the lock is ours."""
    if is_local(folder):
        # Claims are written all the time, by whoever has one.
        for part in [path for path in Path(folder).rglob("*.part") if path.parent.name != "claims"]:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def run_chain(config: RunConfig, batch: RequestBatch, *, say: Say, to_stderr: bool = False, before: str = "") -> Outcome:
    """Run all stages that are not up to date, each in its own process group.

    Args:
        config: a resolved run.
        batch: its requests.
        say: takes one line of progress at a time.
        to_stderr: keep standard output free, for JSON.
        before: the stage that the chain ends before; empty: none.

    Raises:
        UnlearnError: what refused or failed, as the worker named it.
        MethodFailed: the same, where it is one compared method's own fault.
    """
    folder = run_folder(config, batch)
    refuse_other_batch(folder, batch_digest(batch))
    refuse_erased(folder)
    chain = tuple(itertools.takewhile(lambda spec: spec.name != before, chain_for(config)))
    names = tuple(spec.name for spec in chain)
    if exists(join(folder, "config.yaml")) and all(current_receipt(config, folder, spec) for spec in chain):
        return Outcome(folder=folder, ran=(), current=names)
    machine, ran = torchrun.resources(config.launch), list[str]()
    pending = [spec for spec in chain if current_receipt(config, folder, spec) is None]
    with serving(config, pending, machine) as forks:
        check_parts(config, to_stderr=to_stderr, forks=forks)
        with (
            terminable(f"run {config.name}"),
            _no_trace_of_refusal(folder),
            patient_lock(folder, say) as handle,
            owning(folder) as held,
        ):
            start = functools.partial(run_worker, lock=handle, to_stderr=to_stderr, forks=forks)
            remove_parts(folder)
            try:
                prepare_folder(config, batch, folder)
                for spec in chain:
                    if current_receipt(config, folder, spec):
                        say(f"{spec.name}: up to date")
                        continue
                    say(f"{spec.name}: {spec.title}")
                    try:
                        _run_stage(spec, config, folder, machine, start, held.mark, say)
                    except (CheckpointError, ConfigError, GateFailed) as fault:
                        if method := _method_to_blame(config, spec, fault):
                            raise MethodFailed(method, spec.name, fault, tuple(ran)) from None
                        raise
                    ran.append(spec.name)
            finally:
                remove_parts(folder)
    return Outcome(folder=folder, ran=tuple(ran), current=tuple(name for name in names if name not in ran))


def _method_to_blame(config: RunConfig, spec: StageSpec, fault: UnlearnError) -> str:
    """The compared method whose stage, or whose model in the evaluation, failed; empty where it is no method's."""
    # A model that diverged may only show it when it answers; the evaluation's message begins with its name.
    named = (name for name in config.methods if fault.message.startswith(f"{name} model: "))
    return spec.variant or (next(named, "") if spec.name == "evaluate" else "")


def _run_stage(
    spec: StageSpec,
    config: RunConfig,
    folder: str,
    machine: torchrun.Resources,
    start: Callable[..., None],
    mark: str,
    say: Say,
) -> None:
    started = time.monotonic()
    log = join(folder, "logs", f"{spec.name}.log") if is_local(folder) else ""
    job = torchrun.stage_job(spec, folder, machine, threads=config.launch.threads)
    job = dataclasses.replace(job, env={**job.env, VARIABLE: mark})
    start(job, what=f"stage {spec.name}", log=log)
    receipt = current_receipt(config, folder, spec)
    if receipt is None:
        kind = "no receipt" if read_receipt(folder, spec.name) is None else "a receipt that does not fit its outputs"
        raise IntegrityError(f"stage {spec.name}: ended with {kind}", f"see {log or 'its log'}, then run again")
    why = f": {receipt.facts['reason']}" if receipt.facts.get("reason") else ""
    say(f"{spec.name}: done in {time.monotonic() - started:.0f} s{why}")


def read_report(folder: str) -> dict[str, Any]:
    """The run's report as plain data."""
    uri = join(folder, "report.json")
    try:
        content = json.loads(read_bytes(uri))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise IntegrityError(f"{uri}: not a report", "remove receipts/release.json and run again")
    return content


def refuse_failed(report: dict[str, Any]) -> None:
    """Raise GateFailed where the verdict failed, with the rules that were broken."""
    verdict = report.get("verdict") or {}
    if verdict.get("outcome") != "failed":
        return
    broken = [rule for rule in verdict["rules"] if rule["state"] == "broken"]
    lines = [
        f"{rule['metric']}: {rule['value']:.4g}, and the rule is {rule['bound']} ({rule['reason']})"
        if isinstance(rule["value"], float)
        else f"{rule['metric']}: {rule['value'] or 'none'}, and the rule is {rule['bound']} ({rule['reason']})"
        for rule in broken
    ]
    raise GateFailed(
        "\n  ".join(["the verdict failed", *lines]), "the report says what was measured; the rules are the run's `verdict`"
    )
