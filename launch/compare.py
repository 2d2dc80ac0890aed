"""`unlearn compare`: several methods beside one original and one retrained model a seed, each seed a run folder of its own.

A method that fails by its own fault is set aside with the reason, noted in its folder, and the others go on; the note holds
as long as nothing that the method depends on has changed.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from launch.acts import carry_out
from launch.local import MethodFailed, Say, run_chain
from pipeline import __version__
from pipeline.chain import chain_of_method, config_digest, read_receipt, stage
from pipeline.config import RunConfig, run_folder, section_digest
from pipeline.decode import canonical, decode, digest
from pipeline.errors import CheckpointError, IntegrityError, UnlearnError
from pipeline.orders import Budget, CompareAnswer, ComparedRun, CompareOrder
from pipeline.records import RequestBatch, record
from pipeline.requests import batch_digest
from pipeline.storage import exists, join, publish_bytes, read_bytes

__all__ = ["Comparison", "command", "compare_methods", "prefixed", "run_of_seed", "run_one_seed"]

NOTE = "failure.json"


@record
class Comparison:
    """What one `unlearn compare` did, and the facts of its page. `ran` and `current` name stages as SEED/STAGE."""

    folder: str
    page: str
    facts: Mapping[str, Any]
    ran: tuple[str, ...]
    current: tuple[str, ...]


@record
class _Failure:
    """Why a method failed; `mark` is the digest of what it depends on."""

    stage: str
    message: str
    mark: str


def run_of_seed(config: RunConfig, number: int, kind: str = "compare") -> RunConfig:
    """The run of a comparison's seed, or of another `kind` of run at several seeds: its number-th, from the run's own on."""
    seed = config.seed + number
    return dataclasses.replace(config, name=f"{config.name}-{kind}-s{seed}", seed=seed)


def command(run: str, overrides: list[str], methods: str, seeds: int, budget: Budget) -> str:
    """The command line that makes a comparison, with what differs from the defaults."""
    words = ["unlearn", "compare", run, *(["--methods", methods] if methods else []), "--seeds", str(seeds)]
    default = Budget()
    words += ["--cost-budget", f"{budget.cost:g}"] if budget.cost != default.cost else []
    words += ["--loss-budget", f"{budget.loss:g}"] if budget.loss != default.loss else []
    return shlex.join([*words, *overrides])


def compare_methods(
    config: RunConfig, batch: RequestBatch, *, seeds: int, budget: Budget, say: Say, to_stderr: bool = False
) -> Comparison:
    """Run what is not up to date, seed by seed, and draw up the comparison.

    Args:
        config: a resolved run with `methods`.
        batch: its requests.
        seeds: how many, from the run's own seed on.
        budget: what a method may cost and lose.
        say: takes one line of progress at a time.
        to_stderr: keep standard output free, for JSON.

    Raises:
        UnlearnError: what refused or failed and is not one method's own fault.
        CheckpointError: every method failed, with every seed.
    """
    runs: list[ComparedRun] = []
    ran: list[str] = []
    current: list[str] = []
    for number in range(seeds):
        own = run_of_seed(config, number)
        compared, did, was = _one_seed(own, batch, say=prefixed(say, f"seed {own.seed}"), to_stderr=to_stderr)
        runs.append(compared)
        ran += [f"{own.seed}/{name}" for name in did]
        current += [f"{own.seed}/{name}" for name in was]
    if not any(item.folder for item in runs):
        why = "; ".join(dict.fromkeys(f"{name}: {text}" for item in runs for name, text in item.failed.items()))
        raise CheckpointError(f"every method failed: {why}", "change the methods' fields, or choose other methods")
    folder = join(config.output, f"{config.name}-compare-{batch_digest(batch)[:8]}")
    facts = _current(folder, made := _made_from(config, runs, budget))
    if facts is None:
        say("comparison: figures, page and pictures")
        order = CompareOrder(
            folder=folder, name=config.name, methods=config.methods, runs=tuple(runs), budget=budget, made_from=made
        )
        carry_out("compare", order, CompareAnswer, to_stderr=to_stderr)
        facts = _current(folder, made)
        ran.append("comparison")
    if facts is None:
        raise IntegrityError(f"{folder}: changed while it was made", "run the same command again")
    return Comparison(folder=folder, page=join(folder, "compare.html"), facts=facts, ran=tuple(ran), current=tuple(current))


def run_one_seed(
    config: RunConfig, batch: RequestBatch, number: int, *, say: Say, to_stderr: bool = False
) -> tuple[ComparedRun, tuple[str, ...], tuple[str, ...]]:
    """Run what is not up to date of a comparison's number-th seed, and draw up nothing: a task of an array.

    Returns:
        The run, the stages that were run, and those that were up to date.

    Raises:
        UnlearnError: what refused or failed and is not one method's own fault.
    """
    own = run_of_seed(config, number)
    return _one_seed(own, batch, say=prefixed(say, f"seed {own.seed}"), to_stderr=to_stderr)


def prefixed(say: Say, prefix: str) -> Say:
    """Say each line with the prefix."""
    return lambda line: say(f"{prefix}: {line}")


def _one_seed(
    config: RunConfig, batch: RequestBatch, *, say: Say, to_stderr: bool
) -> tuple[ComparedRun, tuple[str, ...], tuple[str, ...]]:
    """Run one seed with all methods that do not fail; returns also the stages that it ran, and those up to date."""
    folder, failed, ran = run_folder(config, batch), dict[str, str](), list[str]()
    for name in config.methods:
        if failure := _noted(config, folder, name):
            failed[name] = f"{failure.stage}: {failure.message}"
            say(f"{name}: left out, it failed before ({failed[name]}); remove {_note(folder, name)} to try again")
    while left := {name: section for name, section in config.methods.items() if name not in failed}:
        done = dataclasses.replace(config, methods=left)
        try:
            outcome = run_chain(done, batch, say=say, to_stderr=to_stderr)
        except MethodFailed as fault:
            ran += fault.ran
            failed[fault.method] = str(fault)
            mark = _mark(config, folder, fault.method)
            failure = _Failure(stage=fault.stage, message=fault.fault.message, mark=mark)
            publish_bytes(_note(folder, fault.method), canonical(failure))
            say(f"{fault.method}: failed, the others go on: {fault}")
            continue
        current = tuple(name for name in outcome.current if name not in ran)
        return ComparedRun(seed=config.seed, folder=folder, failed=failed), (*ran, *outcome.ran), current
    return ComparedRun(seed=config.seed, folder="", failed=failed), tuple(ran), ()


def _note(folder: str, method: str) -> str:
    return join(folder, "methods", method, NOTE)


def _mark(config: RunConfig, folder: str, method: str) -> str:
    """Digest of what a method's failure depends on: its configuration, how it is measured, and the shared stages."""
    stages = {spec.name: config_digest(config, spec) for spec in chain_of_method(config, method)}
    shared = {name: read_receipt(folder, name) for name in ("shard", "train")}
    outputs = {name: receipt.outputs if receipt else None for name, receipt in shared.items()}
    evaluation = section_digest(config, tuple(name for name in stage("evaluate", config).sections if name != "methods"))
    section = dict(config.methods[method])
    return digest({"stages": stages, "outputs": outputs, "evaluation": evaluation, "section": section, "version": __version__})


def _noted(config: RunConfig, folder: str, method: str) -> _Failure | None:
    """The failure of a method, where trying again would only repeat it."""
    uri = _note(folder, method)
    if not exists(uri):
        return None
    try:
        failure = decode(_Failure, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
        return failure if failure.mark == _mark(config, folder, method) else None
    except (ValueError, IntegrityError):
        return None  # whatever it is, the stage says it again


def _made_from(config: RunConfig, runs: list[ComparedRun], budget: Budget) -> str:
    """Digest of what the comparison is drawn from; a receipt of an evaluation stands for all that was before it."""
    receipts = [read_receipt(item.folder, "evaluate") if item.folder else None for item in runs]
    seen = [digest(receipt) if receipt else None for receipt in receipts]
    return digest(
        {"name": config.name, "methods": config.methods, "runs": runs, "seen": seen, "budget": budget, "version": __version__}
    )


def _current(folder: str, made_from: str) -> dict[str, Any] | None:
    """The facts of the comparison that lies in the folder, if it is the one that is wanted and its page is there."""
    uri = join(folder, "compare.json")
    if not exists(uri) or not exists(join(folder, "compare.html")):
        return None
    try:
        facts = json.loads(read_bytes(uri))
    except (ValueError, UnlearnError):
        return None
    return facts if isinstance(facts, dict) and facts.get("made_from") == made_from else None
