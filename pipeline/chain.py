"""The chain of stages as data, the layout of a run folder, and the rule that says when a stage need not run again.

Torch-free, so that the command line can answer "nothing to do" without starting a worker.
"""

from __future__ import annotations

import dataclasses
import json

from pipeline.config import RunConfig, section_digest
from pipeline.decode import canonical, decode, digest
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef, Receipt, record
from pipeline.storage import exists, join, publish_bytes, read_bytes, size

__all__ = [
    "CHAIN",
    "OFF",
    "PHASES",
    "StageSpec",
    "chain_for",
    "chain_of_method",
    "config_digest",
    "current_receipt",
    "for_variant",
    "inputs_of",
    "read_receipt",
    "stage",
    "weights_before",
    "write_receipt",
]

_MODEL = ("model", "task", "images", "stream", "engine", "seed")


@record
class StageSpec:
    """One link: which stages it reads, which configuration it depends on, and how many processes it wants.

    `module` does the work; in a comparison `variant` is the method that it works for, and `name` is MODULE.VARIANT.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    distributed: bool
    module: str
    variant: str = ""


def _spec(name: str, title: str, needs: str, sections: tuple[str, ...], distributed: bool = True) -> StageSpec:
    return StageSpec(name=name, title=title, needs=tuple(needs.split()), sections=sections, distributed=distributed, module=name)


CHAIN: tuple[StageSpec, ...] = (
    _spec("shard", "pack the source, index it, cut forget and retain shards", "", ("source", "seed", "images", "shards"), False),
    _spec("train", "the original model, on all training images", "shard", (*_MODEL, "train", "original")),
    _spec("retrain", "the reference, on retained images only", "shard", (*_MODEL, "train", "reference")),
    _spec("calibrate", "the out-of-distribution level of each group", "shard train", (*_MODEL, "train", "method")),
    _spec("forget", "phase 1: gradient ascent on forget shards", "shard train calibrate", (*_MODEL, "train", "method")),
    _spec("certify", "noisy steps on retain shards", "shard train calibrate forget", (*_MODEL, "train", "method")),
    _spec(
        "retain",
        "phase 2: ZeRO fine-tuning on retain shards",
        "shard train calibrate forget certify",
        (*_MODEL, "train", "method"),
    ),
    _spec("evaluate", "four splits, each model", "shard train retrain calibrate forget certify retain", (*_MODEL, "evaluation")),
    _spec(
        "release",
        "weights, card, report",
        "shard train retrain calibrate forget certify retain evaluate",
        ("name", "model", "task", "method", "evaluation", "train", "engine", "source", "verdict"),
        False,
    ),
)
_SPECS = {spec.name: spec for spec in CHAIN}
PHASES = {"calibrate": "calibration", "forget": "forget", "certify": "certify", "retain": "retain"}
"""Stages that a method decides on, and the part of its section that asks for them."""
OFF = (None, False, "off")
"""Values of such a part that ask for nothing."""


def for_variant(config: RunConfig, variant: str) -> RunConfig:
    """The configuration as a stage of this variant sees it: `method` is the variant's."""
    return dataclasses.replace(config, method=config.methods[variant]) if variant else config


def chain_of_method(config: RunConfig, variant: str = "") -> list[StageSpec]:
    """The stages of one method, of a comparison's `variant` or the run's own: the parts that its section names."""
    section = for_variant(config, variant).method
    return [_of_variant(_SPECS[name], variant) for name, part in PHASES.items() if section.get(part) not in OFF]


def _of_variant(spec: StageSpec, variant: str) -> StageSpec:
    """A stage of one method, in a comparison under the method's name."""
    if not variant:
        return spec
    needs = tuple(f"{name}.{variant}" if name in PHASES else name for name in spec.needs)
    return dataclasses.replace(
        spec, name=f"{spec.name}.{variant}", title=f"{variant}: {spec.title}", needs=needs, variant=variant
    )


def chain_for(config: RunConfig) -> tuple[StageSpec, ...]:
    """The stages of a run, in order; each needs only stages that the run has.

    Without `retrain` where no reference is wanted; of the unlearning stages those that the method's section names; for a
    comparison those of every method, one evaluation of all, and no release.
    """
    variants = list(config.methods) or [""]
    chain = [_SPECS["shard"], _SPECS["train"], *([_SPECS["retrain"]] if config.reference != "none" else [])]
    phases = [spec for variant in variants for spec in chain_of_method(config, variant)]
    evaluate = _SPECS["evaluate"]
    if config.methods:
        # A method without a phase has no stage that could be needed; its name counts all the same.
        evaluate = dataclasses.replace(
            evaluate, needs=(*evaluate.needs, *(spec.name for spec in phases)), sections=(*evaluate.sections, "methods")
        )
    chain += [*phases, evaluate, *([] if config.methods else [_SPECS["release"]])]
    names = {spec.name for spec in chain}
    return tuple(dataclasses.replace(spec, needs=tuple(need for need in spec.needs if need in names)) for spec in chain)


def stage(name: str, config: RunConfig) -> StageSpec:
    """The run's stage called `name`; KeyError if it has none."""
    return {spec.name: spec for spec in chain_for(config)}[name]


def weights_before(spec: StageSpec) -> tuple[str, str]:
    """The stage whose weights this one goes on from, and the name of those weights."""
    for module, weights in (("retain", "unlearned"), ("certify", "certified"), ("forget", "forgotten")):
        for name in spec.needs:
            if name.split(".")[0] == module:
                return name, weights
    return "train", "original"


def config_digest(config: RunConfig, spec: StageSpec) -> str:
    """Digest of the configuration that the stage depends on."""
    return section_digest(for_variant(config, spec.variant), spec.sections)


def _receipt_uri(folder: str, name: str) -> str:
    return join(folder, "receipts", f"{name}.json")


def write_receipt(folder: str, receipt: Receipt) -> None:
    """Publish a receipt sealed with its own digest. Write it last."""
    sealed = {"receipt": receipt, "sha256": digest(receipt)}
    publish_bytes(_receipt_uri(folder, receipt.stage), canonical(sealed))


def read_receipt(folder: str, name: str) -> Receipt | None:
    """The stage's receipt, or None if it has none.

    Raises:
        IntegrityError: any byte of it was changed.
    """
    uri = _receipt_uri(folder, name)
    if not exists(uri):
        return None
    content, cure = read_bytes(uri), "remove the file to run the stage again"
    try:
        sealed = json.loads(content)
        receipt = decode(Receipt, sealed["receipt"], where=uri, error=IntegrityError)
        intact = canonical({"receipt": receipt, "sha256": digest(receipt)}) == content
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{uri}: not a receipt", cure) from None
    if not intact or receipt.stage != name:
        raise IntegrityError(f"{uri}: changed after it was written", cure)
    return receipt


def inputs_of(folder: str, spec: StageSpec) -> dict[str, str] | None:
    """Digest of the outputs of each needed stage, or None while one of them is not done."""
    inputs: dict[str, str] = {}
    for name in spec.needs:
        receipt = read_receipt(folder, name)
        if receipt is None:
            return None
        inputs[name] = digest(receipt.outputs)
    return inputs


def _there(folder: str, ref: FileRef) -> bool:
    try:
        return size(join(folder, ref.uri)) == ref.bytes
    except StorageError:
        return False


def current_receipt(config: RunConfig, folder: str, spec: StageSpec) -> Receipt | None:
    """The receipt that makes running the stage again needless: same inputs, same configuration, outputs there.

    Outputs are checked by size here; `unlearn verify` hashes them.
    """
    receipt = read_receipt(folder, spec.name)
    if receipt is None or receipt.config_digest != config_digest(config, spec):
        return None
    if dict(receipt.inputs) != inputs_of(folder, spec):
        return None
    return receipt if all(_there(folder, ref) for ref in receipt.outputs) else None
