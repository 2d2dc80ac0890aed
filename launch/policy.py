"""A schedule's policy: when batches are closed, who runs them, and what is done about failures. A YAML file, strictly decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import StringConstraints

from pipeline.config import NotNegative, Positive, PositiveFloat, RunConfig, resolve
from pipeline.decode import closest, decode
from pipeline.errors import ConfigError
from pipeline.layers import packaged, read_yaml
from pipeline.records import record
from pipeline.storage import absolute, is_local

__all__ = ["LinePolicy", "SchedulePolicy", "backoff_seconds", "read_policy", "run_of", "span_seconds"]

Span = Annotated[str, StringConstraints(pattern=r"^(0|[0-9]{1,6}(\.[0-9]{1,3})?[smhd])$")]
"""A length of time: a number with s, m, h or d, such as `12h`; or 0."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@record
class LinePolicy:
    """One model line: which run its batches go through."""

    run: str = ""
    """A packaged run, or a YAML file; empty: the line's own name is that."""
    overrides: tuple[str, ...] = ()
    """Fields of the run that are changed, as `key=value`."""
    submit: Literal["", "local", "slurm"] = ""
    """Where this line's batches run; empty: as all others."""
    cluster: str = ""
    """The line's own cluster; empty: that of all others."""
    original: Literal["run", "released"] = "run"
    """What a batch is unlearned from: as the run says, or the model that the policy's alias names, once there is one."""


@record
class SchedulePolicy:
    """A schedule. Lengths of time are texts such as `12h`; 0 leaves a condition out."""

    every: Span = "7d"
    """A batch is closed when its oldest request has waited so long."""
    count: NotNegative = 0
    """Or when so many requests wait."""
    before_due: Span = "10d"
    """Or when the nearest due date is so near."""
    most: Positive = 100_000
    """Requests of one batch; more make another one."""
    lease_seconds: PositiveFloat = 120.0
    """A worker that gives no sign of life for so long has lost its batch to another."""
    attempts: Positive = 3
    """Runs of a batch that may fail, before it is held for a person."""
    preemptions: NotNegative = 20
    """Runs that may be stopped from outside and go on where they were; they do not count as attempts."""
    backoff: Span = "10m"
    """Pause after the first failure; it doubles with each, and is lengthened by up to a half at random."""
    backoff_most: Span = "6h"
    """Longest pause, before that."""
    submit: Literal["local", "slurm"] = "local"
    """`local`: the process that ticks runs the batch, on this machine. `slurm`: its stages are sent as jobs, and later ticks look
    after them."""
    cluster: str = ""
    """With slurm: a name in configs/launch, or a YAML file; empty: one node."""
    tombstones: bool = True
    """All streams are made to skip a batch's images, so that no later batch of the line trains on them again: before it runs, or
    after it where the run trains its original itself."""
    release: Literal["auto", "by hand"] = "by hand"
    """`auto`: what passed its verdict is released at once. `by hand`: `unlearn release` does."""
    release_to: str = ""
    """With auto: folder or URI below which model lines lie."""
    release_key: str = ""
    """With auto: file of the signing key."""
    passphrase_file: str = ""
    """With auto: file of that key's passphrase; empty: UNLEARN_PASSPHRASE, or none."""
    alias: str = ""
    """Name of each line's alias that says which model is in force, and with auto is moved to each release; empty: none."""
    pause: Span = "60s"
    """Between two ticks of `unlearn schedule serve`, lengthened by up to a tenth at random."""
    lines: Mapping[str, LinePolicy] = dataclasses.field(default_factory=dict)
    """The model lines that this schedule works on; empty: all, each with the run that it is named after."""


def span_seconds(text: str) -> float:
    """Seconds of a length of time such as `12h`; the form was checked when the policy was read."""
    return 0.0 if text == "0" else float(text[:-1]) * UNITS[text[-1]]


def backoff_seconds(policy: SchedulePolicy, failures: int, chance: float) -> float:
    """How long to wait after a failure.

    Args:
        policy: the schedule's.
        failures: how many there were, this one included.
        chance: 0 to 1, drawn at random, so that many batches that failed together do not come back together.
    """
    plain = min(span_seconds(policy.backoff) * 2.0 ** (failures - 1), span_seconds(policy.backoff_most))
    return plain * (1.0 + chance / 2.0)


def read_policy(policy: str = "standard") -> SchedulePolicy:
    """Decode a policy.

    Args:
        policy: a packaged name (see `configs/schedule/`), or a YAML file at any fsspec URI.

    Raises:
        ConfigError: no such policy, an unknown field, a value of the wrong form, or one that decodes but cannot work.
    """
    files = packaged("schedule")
    if policy in files:
        where = str(files[policy])
    elif policy.endswith((".yaml", ".yml")):
        where = _whole_path(policy)
    else:
        raise ConfigError(f"no schedule is called '{policy}'", f"{closest(policy, list(files))}; or name a YAML file")
    config = decode(SchedulePolicy, read_yaml(where), where=policy)
    if not any((span_seconds(config.every), config.count, span_seconds(config.before_due))):
        raise ConfigError(f"{policy}: every, count, before_due: all are 0", "set one of them, or no batch is ever closed")
    missing = [name for name in ("release_to", "release_key") if not getattr(config, name)]
    if config.release == "auto" and missing:
        raise ConfigError(f"{policy}: {missing[0]}: missing, and release is auto", "set it, or write release: by hand")
    lost = [line for line, own in config.lines.items() if own.original == "released" and not config.alias]
    if lost:
        raise ConfigError(f"{policy}: lines.{lost[0]}.original: released, and no alias says which", "set alias")
    # Requests of a line that is a file name its whole path.
    whole = {_whole_path(line): own for line, own in config.lines.items()}
    return dataclasses.replace(config, lines=whole)


def _whole_path(text: str) -> str:
    return absolute(text) if text.endswith((".yaml", ".yml")) and is_local(text) else text


def run_of(policy: SchedulePolicy, line: str, *, original: str = "") -> RunConfig:
    """The run that a line's batches go through.

    Args:
        policy: the schedule's.
        line: the model line.
        original: address of the weights to unlearn; empty: as the run says.

    Raises:
        ConfigError: the line is not the schedule's, or its run file is faulty or missing.
    """
    if policy.lines and line not in policy.lines:
        raise ConfigError(f"line {line}: not among the schedule's lines", closest(line, list(policy.lines)))
    own = policy.lines.get(line, LinePolicy())
    changed = [f"original={original}"] if original else []
    # `methods` is for comparisons, which no batch is.
    return dataclasses.replace(resolve(own.run or line, [*own.overrides, *changed]), methods={})
