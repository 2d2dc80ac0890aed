"""A run's configuration: defaults < `configs/<group>/<name>.yaml` < the run file < `key=value` on the command line.

Sections for parts (source, model, task, method) stay plain mappings here, because their `Config` classes live beside
code that may import torch; `pipeline.component` decodes them. All else is typed. Every stage has a digest of just the
sections it depends on, so changing the report does not train a model again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from pipeline.component import GROUPS
from pipeline.decode import closest, decode, digest, plain
from pipeline.errors import ConfigError
from pipeline.findings import AUDITED, MEASURED, TIERS
from pipeline.layers import (
    CONFIGS,
    assignments,
    compared,
    merge,
    method_sections,
    named_methods,
    packaged,
    packaged_section,
    read_yaml,
    rules_section,
)
from pipeline.records import RequestBatch, record
from pipeline.requests import batch_digest, parse, read_requests
from pipeline.storage import absolute, is_local, join

__all__ = [
    "CONFIGS",
    "EngineConfig",
    "EvaluationConfig",
    "ImagesConfig",
    "LaunchConfig",
    "NotNegative",
    "NotNegativeFloat",
    "Positive",
    "PositiveFloat",
    "ReadingConfig",
    "RuleConfig",
    "RunConfig",
    "ShardsConfig",
    "Share",
    "StreamConfig",
    "TrainConfig",
    "packaged",
    "packaged_section",
    "read_batch",
    "read_run",
    "remote_inputs",
    "resolve",
    "run_folder",
    "run_id",
    "section_digest",
]

Positive = Annotated[int, Gt(0)]
NotNegative = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NotNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Lt(1)]


@record
class ImagesConfig:
    """How stored images become model input."""

    fit: Literal["crop", "pad"] = "crop"
    """`crop`: scale the short side to the model's size and cut the centre. `pad`: centre on black, never scale up."""
    max_pixels: Positive = 64_000_000
    """Larger images are refused as decompression bombs."""
    cache_bytes: NotNegative = 1 << 30
    """Decoded images kept in memory, per rank."""


@record
class ShardsConfig:
    """How shards are read into the index."""

    on_error: Literal["stop", "quarantine"] = "stop"
    """A faulty shard or sample ends the run, or is set aside and listed by name."""
    max_quarantined: NotNegative = 100
    """More faults than this end the run even under `quarantine`."""
    near_bits: Annotated[int, Ge(0), Lt(16)] | None = 3
    """Images whose 64-bit perceptual hashes differ in at most so many bits count as near copies; null: do not look."""


@record
class StreamConfig:
    """The order of training samples: a function of seed, pass and these fields, the same at every world size."""

    lanes: Positive = 32
    """Sequences that are read side by side; ranks share them, so there are at most so many ranks."""
    block_bytes: Positive = 8 << 20
    """Bytes of a shard that are read in one request."""
    window: Positive = 2
    """Blocks of a lane that are shuffled together."""


@record
class ReadingConfig:
    """How samples are fetched and decoded; changes speed and memory, never the result."""

    threads: NotNegative = 0
    """Decoding threads per rank; 0: the rank's share of the cores."""
    ahead: Positive = 3
    """Batches made ahead of the one in use."""
    in_flight: Positive = 16
    """Range requests under way at once, per rank."""
    attempt_seconds: PositiveFloat = 10.0
    """A request that is silent so long is sent again."""
    deadline_seconds: PositiveFloat = 120.0
    """A read that has failed for so long ends the stage."""
    cache_folder: str = ""
    """Local folder in which ranges of remote shards are kept; empty: none."""
    cache_bytes: NotNegative = 64 << 30
    """Size of that folder at most."""


@record
class TrainConfig:
    """Training of the original and of the retrained reference, where they are ours to make."""

    epochs: Positive = 6
    """Passes over the training samples."""
    batch_size: Positive = 128
    """Global batch, whatever the number of ranks."""
    learning_rate: PositiveFloat = 1e-3
    """Peak of a cosine schedule."""
    warmup_steps: NotNegative = 20
    """Linear rise to the peak."""
    weight_decay: NotNegativeFloat = 0.0
    """AdamW's decoupled decay."""
    slices: Positive = 1
    """Stages of training, each on one slice of the samples more than the one before; the weights between them are kept, and
    `method=rewind` goes back to them. `epochs` stays the number of reads by sample, on average."""

    def __post_init__(self) -> None:
        """Refuse more slices than can each be read once."""
        if self.slices > 2 * self.epochs - 1:
            message = f"train.slices: {self.slices} slices of {self.epochs} epochs leave some stage without a pass"
            raise ConfigError(message, f"set train.slices to {2 * self.epochs - 1} at most, or train.epochs higher")


@record
class EngineConfig:
    """DeepSpeed engine, in every phase."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What ZeRO partitions: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
    precision: Literal["fp32", "bf16", "autocast"] = "fp32"
    """Compute type: bf16 weights, or fp32 weights under bf16 autocast; master weights and optimizer states are fp32 always."""
    compile: bool = False
    """torch.compile the model's forward pass (needs a C++ compiler on CPU)."""
    checkpoint_steps: Positive = 200
    """Steps between sharded checkpoints of the long phases."""
    background_saves: bool = True
    """Write them while steps go on, from a copy in the machine's memory (12 bytes a parameter, over the ranks)."""
    log_steps: Positive = 10
    """Steps between lines in metrics.jsonl."""
    kernels: Literal["auto", "reference", "cpu", "triton"] = "auto"
    """What moves weights in steps that are ours: compiled kernels where they work, or plain torch (reference)."""
    jit_ops: bool = False
    """Let DeepSpeed compile its shared-memory collective on CPU at first use (needs a C++ compiler, about 25 s)."""


@record
class EvaluationConfig:
    """What is measured at the end."""

    max_samples: Positive = 2000
    """Images per split and group at most, chosen by key hash; forget images likewise."""
    batch_size: Positive = 500
    """Images per forward pass."""
    bootstrap: Positive = 1000
    """Resamples behind each interval."""
    confidence: Share = 0.95
    """Coverage of the intervals."""
    extractors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Feature extractors, each with the path of its weights; efflite0 comes from a package, and its path is empty."""
    extractor_samples: Positive = 500
    """Images per split and group at most that they see; a Frechet distance needs 2,048."""
    grid_images: Positive = 8
    """Columns of each picture grid."""


@record
class RuleConfig:
    """One rule of the verdict; its name is what it is about."""

    at_most: float | None = None
    """Largest value that is kept."""
    at_least: float | Literal["E", "C", "A", "D"] | None = None
    """Smallest value that is kept; of `tier` the weakest tier."""
    by: Literal["value", "interval"] = "value"
    """What must keep the bound: the figure, or its whole interval."""
    reason: str
    """Why there is this rule; it is printed beside the outcome."""


@record
class LaunchConfig:
    """Processes on this machine."""

    ranks: NotNegative = 0
    """Ranks per stage; 0 means all GPUs, or two on a machine without."""
    threads: NotNegative = 0
    """Compute threads per rank; 0 means cores divided by ranks."""
    timeout_seconds: Positive = 600
    """A collective that waits longer, or a rank that gives no sign of life for longer, ends the stage."""


@record
class RunConfig:
    """One run, fully resolved."""

    name: str
    """Run folders are called NAME-1a2b3c4d, the digits from the batch digest."""
    requests: str = ""
    """Request file (YAML, CSV, JSON lines), any fsspec URI."""
    output: str = "runs"
    """Folder, or any fsspec URI, under which run folders and packed sources lie."""
    seed: int = 0
    """Initial weights, sample order and resamples are functions of this number."""
    original: str = "train"
    """`train`, or the URI of a safetensors file with the weights to unlearn."""
    reference: str = "retrain"
    """`retrain`, `none`, or the URI of a safetensors file with retrained weights."""
    source: Mapping[str, Any]
    """Where the images come from: a name, or a mapping with `component`."""
    model: Mapping[str, Any]
    """What is trained."""
    task: Mapping[str, Any]
    """What is hidden from the model."""
    method: Mapping[str, Any]
    """How it unlearns."""
    images: ImagesConfig = ImagesConfig()
    shards: ShardsConfig = ShardsConfig()
    stream: StreamConfig = StreamConfig()
    reading: ReadingConfig = ReadingConfig()
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    launch: LaunchConfig = LaunchConfig()
    verdict: Mapping[str, RuleConfig] = dataclasses.field(default_factory=dict)
    """What the released model must keep to pass: rules, or the name of a packaged set; empty: nothing is decided."""
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Methods that `unlearn compare` sets side by side, by name; empty: `method` alone."""
    embedded_requests: tuple[Mapping[str, Any], ...] = ()
    """Requests written in the run file itself; set by `requests: [...]`."""


def resolve(run: str, overrides: list[str] | None = None, *, compare: Sequence[str] | None = None) -> RunConfig:
    """Layer and decode a run.

    Args:
        run: a packaged name (`demo`), or a YAML file at any fsspec URI.
        overrides: `key=value` texts with dotted keys; values are YAML.
        compare: methods to set side by side, packaged ones or those that the run names; empty: those that the run asks
            for, or all there are. None: what the run's `methods` names, and no more.

    Raises:
        ConfigError: unknown file, name, field, or a value of the wrong type, with its dotted path.
    """
    files = packaged("run")
    if run in files:
        run = str(files[run])
    elif not run.endswith((".yaml", ".yml")):
        raise ConfigError(f"no run is called '{run}'", f"{closest(run, list(files))}; or name a YAML file")
    given, assigned = read_yaml(run), assignments(overrides or [], GROUPS)
    for group in set(GROUPS) & set(given) & set(assigned):
        if isinstance(given[group], str):
            given[group] = {"component": given[group]}
        if isinstance(assigned[group], Mapping) and "component" in assigned[group]:
            given[group] = {}  # another part: the run file's fields are not its fields
    methods = named_methods(given.pop("methods", None), assigned.pop("methods", None), run)
    if isinstance(given.get("verdict"), str) and isinstance(assigned.get("verdict"), Mapping):
        given["verdict"] = rules_section(given["verdict"], run)  # one rule of a packaged set may be changed
    given = merge(given, assigned)
    unknown = sorted(set(given) - {field.name for field in dataclasses.fields(RunConfig)})
    if unknown:
        known = [field.name for field in dataclasses.fields(RunConfig) if field.name != "embedded_requests"]
        raise ConfigError(f"{run}: {unknown[0]}: unknown field", closest(unknown[0], known))
    for group in GROUPS:
        if group in given:
            given[group] = packaged_section(group, given[group], run)
    if "verdict" in given:
        given["verdict"] = rules_section(given["verdict"], run)
    names = methods.asked or tuple(methods.sections) if compare is None else compared(methods, compare)
    given["methods"] = method_sections(methods, names, given.get("method"), run)
    if compare is not None and "method" not in given:
        given["method"] = next(iter(given["methods"].values()))  # a comparison has no method of its own
    requests = given.get("requests", "")
    if isinstance(requests, list):
        given["requests"], given["embedded_requests"] = "", requests
    elif isinstance(requests, str) and requests.startswith("package:"):
        given["requests"] = str(CONFIGS / "requests" / requests.removeprefix("package:"))
    for key in ("requests", "original", "reference", "output"):
        value = given.get(key)
        if isinstance(value, str) and is_local(value) and value not in ("", "train", "retrain", "none"):
            given[key] = absolute(value)
    return _checked(decode(RunConfig, {"output": absolute("runs"), **given}, where=run), run)


def _checked(config: RunConfig, where: str) -> RunConfig:
    """Refuse values that decode but cannot work."""
    safe = config.name.replace("-", "").replace("_", "").replace(".", "")
    if not (safe.isascii() and safe.isalnum()) or config.name.startswith("."):
        raise ConfigError(f"{where}: name: '{config.name}'", "use letters, digits, '-', '_' and '.'")
    for metric, rule in config.verdict.items():
        _refuse_rule(metric, rule, f"{where}: verdict.{metric}")
    return config


def _refuse_rule(metric: str, rule: RuleConfig, where: str) -> None:
    known = [*MEASURED, *AUDITED]
    if metric not in known:
        raise ConfigError(f"{where}: nothing of this name is measured", closest(metric, known))
    if rule.at_most is None and rule.at_least is None:
        raise ConfigError(f"{where}: a rule without a bound", "set at_most, at_least, or both")
    if (metric == "tier") != isinstance(rule.at_least, str) or (metric == "tier" and rule.at_most is not None):
        cure = f"write at_least: one of {', '.join(TIERS)}" if metric == "tier" else "write a number"
        raise ConfigError(f"{where}: not a bound of this figure", cure)
    if not rule.reason.strip():
        raise ConfigError(f"{where}.reason: empty", "say why there is this rule: it is printed beside the outcome")


def read_batch(config: RunConfig) -> RequestBatch:
    """The requests of a run, from its file or from the run file itself."""
    if config.embedded_requests:
        return parse(list(config.embedded_requests), where=f"run {config.name}")
    if not config.requests:
        raise ConfigError(f"run {config.name}: no requests", "add requests=FILE, or requests: in the run file")
    return read_requests(config.requests)


def read_run(folder: str) -> RunConfig:
    """The resolved configuration saved in a run folder.

    Raises:
        StorageError: there is none.
        ConfigError: it is not one of this version's.
    """
    where = join(folder, "config.yaml")
    return decode(RunConfig, read_yaml(where), where=where)


def run_id(config: RunConfig, batch: RequestBatch) -> str:
    """Run name and first eight digits of the batch digest: the same batch always has the same folder."""
    return f"{config.name}-{batch_digest(batch)[:8]}"


def run_folder(config: RunConfig, batch: RequestBatch) -> str:
    """Where the run's files lie."""
    return join(config.output, run_id(config, batch))


def remote_inputs(config: RunConfig) -> tuple[str, ...]:
    """Addresses in buckets that the run reads: given weights, and whatever in the source's section is an address.

    Of a glob or brace pattern, the folder in which it begins.
    """
    values: list[Any] = [config.original, config.reference, *config.source.values()]
    texts = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    found = []
    for text in texts:
        if isinstance(text, str) and "://" in text:
            plain_part = re.split(r"[*?\[{]", text, maxsplit=1)[0]
            found.append(text if plain_part == text else plain_part.rsplit("/", 1)[0])
    return tuple(dict.fromkeys(found))


def section_digest(config: RunConfig, sections: tuple[str, ...]) -> str:
    """Digest of the named top-level sections."""
    return digest({name: plain(getattr(config, name)) for name in sections})
