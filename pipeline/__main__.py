"""Worker entry: `python -m pipeline STAGE FOLDER` runs one stage on this process; `check FILE` decodes a configuration;
`index`, `tombstone`, `forecast`, `erase` and `compare` take an order as a JSON file and leave `answer.json` beside it.

torchrun starts one such process a rank. A failure goes as a line of JSON to the file that `UNLEARN_ERROR_FILE` names, and a
named one ends the process with the error's exit code; torchrun's agent may then start the ranks again, and they end at once
where trying again cannot help.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import yaml

from pipeline import component
from pipeline.chain import CHAIN, stage
from pipeline.config import RunConfig, read_run, remote_inputs
from pipeline.decode import canonical, decode
from pipeline.engine.watchdog import watching
from pipeline.errors import ConfigError, Preempted, StorageError, UnlearnError
from pipeline.orders import ACTS
from pipeline.stages.runner import run_stage
from pipeline.storage import check_access, publish_bytes, read_bytes

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends, so that a killed launcher leaves no orphan at work.

    Not SIGKILL: an agent ends at once when it is told to leave twice, while its ranks still save their state.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _check(file: str) -> None:
    """Ask the storage for its leave, decode every part of a resolved configuration, build the model without memory, and refuse a
    certificate whose noise nobody agreed to."""
    import torch

    from pipeline.models.base import certified_weights
    from pipeline.privacy.accountant import library
    from pipeline.privacy.mechanism import certify_config
    from pipeline.privacy.price import refuse_price

    config = decode(RunConfig, yaml.safe_load(read_bytes(file)), where="configuration")
    check_access(config.output, write=True)
    for uri in remote_inputs(config):
        check_access(uri, write=False)
    with torch.device("meta"):
        model = component.build("model", config.model)
    # Not all models can do all tasks: a masked model needs something that is not hidden.
    image = torch.zeros(1, model.channels, model.image_size, model.image_size)
    _, region = component.build("task", config.task).degrade(image, torch.zeros(1, dtype=torch.int64))
    model.admit(region)
    component.decode_config("source", config.source)
    for section in (config.method, *config.methods.values()):
        component.decode_config("method", section)
        certify = certify_config(section.get("certify"))
        if certify is not None:
            names = set(certified_weights(model, certify.trains))
            refuse_price(certify, sum(found.numel() for name, found in model.named_parameters() if name in names))
            library()


def _act(name: str, file: str) -> None:
    """Carry out an order, and leave its answer beside it."""
    order = decode(ACTS[name], json.loads(read_bytes(file)), where=f"order {name}")
    answer = importlib.import_module(f"pipeline.acts.{name}").run(order)
    publish_bytes(os.path.join(os.path.dirname(file), "answer.json"), canonical(answer))


def _run(name: str, folder: str) -> None:
    config = read_run(folder)
    if not stage(name, config).distributed:
        run_stage(name, folder)
        return
    if not config.engine.compile:
        # DeepSpeed decorates a function that is not called here, and that alone loads a compiler: a second or two on every rank.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Already now: loading torch from a sick disk can take for ever.
    with watching(config.launch.timeout_seconds, f"{name}: start"):
        from pipeline.engine.distributed import join_group, leave_group

        group = join_group(timeout_seconds=config.launch.timeout_seconds)
        run_stage(name, folder, rank=group.rank, world_size=group.world_size)
        # Only after success: on a failure ranks disagree, and a collective would hang.
        leave_group()


def _attempt() -> int:
    """How often torchrun's agent has started the ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _write_down(kind: str, message: str = "", **facts: Any) -> None:
    """Leave word of this rank for the launcher: a line of its own, whatever other ranks write."""
    entry = {"kind": kind, "message": message, "cure": "", "attempt": _attempt(), "rank": int(os.environ.get("RANK", "0"))}
    path = os.environ.get("UNLEARN_ERROR_FILE", "")
    with contextlib.suppress(OSError), open(path or os.devnull, "ab", buffering=0) as stream:
        stream.write((json.dumps({**entry, **facts}) + "\n").encode())


def _report(fault: UnlearnError) -> None:
    if "UNLEARN_ERROR_FILE" not in os.environ:
        print(f"error: {fault}", file=sys.stderr)
        return
    facts = {"cure": fault.cure, "exit_code": fault.exit_code, "final": not isinstance(fault, StorageError)}
    _write_down(type(fault).__name__, fault.message, **facts)


def _final() -> int:
    """Exit code of an earlier attempt's failure that trying again cannot cure; 0 without one."""
    with contextlib.suppress(OSError):
        for line in Path(os.environ.get("UNLEARN_ERROR_FILE", os.devnull)).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError):
                entry = json.loads(line)
                if entry["attempt"] < _attempt() and entry["final"]:
                    return int(entry["exit_code"])
    return 0


def _lost_peers(fault: Exception) -> bool:
    """Whether other ranks are the cause; where torch was not loaded there are none."""
    loaded = sys.modules.get("pipeline.engine.distributed")
    return loaded is not None and bool(loaded.lost_peers(fault))


def _settle() -> None:
    """Nothing is left to save: a batch system that repeats its signal must not change how this process ends."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str]) -> int:
    """Run and return the exit code; a bug of ours escapes as a traceback."""
    _die_with_parent()
    if code := _final():
        return code
    _write_down("Started")
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stderr, force=True)
    # Deprecations inside torch and DeepSpeed are theirs to mend; a log should hold what the reader can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|deepspeed\.")
    for noisy in ("accelerate", "DeepSpeed", "torch", "fsspec", "matplotlib", "PIL", "botocore"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    known = f"stages: check, {', '.join((*ACTS, *(spec.name for spec in CHAIN)))}"
    try:
        if len(arguments) != 2:
            raise ConfigError("usage: python -m pipeline STAGE FOLDER", known)
        name, place = arguments
        if name == "check":
            _check(place)
        elif name in ACTS:
            _act(name, place)
        elif name.partition(".")[0] in {spec.name for spec in CHAIN}:
            _run(name, place)
        else:
            raise ConfigError(f"no stage is called '{name}'", known)
    except UnlearnError as fault:
        _settle()
        _report(fault)
        return fault.exit_code
    except Exception as fault:
        lost = _lost_peers(fault)
        _write_down("LostPeers" if lost else "Bug", str(fault) if lost else type(fault).__name__)
        if not lost:
            raise
        traceback.print_exc()
        return Preempted.exit_code
    _settle()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
