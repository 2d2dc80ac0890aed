"""Worker entry: `python -m pipeline STAGE FOLDER` runs one stage on this process; `check FILE` decodes a configuration;
`index`, `tombstone`, `forecast`, `erase` and `compare` take an order as a JSON file and leave `answer.json` beside it.

torchrun starts one such process a rank. A named failure goes as a line of JSON to the file that `UNLEARN_ERROR_FILE` names,
and ends the process with the error's exit code; torchrun's agent then starts the ranks again, and they end at once where
trying again cannot help.
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
import warnings
from pathlib import Path

import yaml

from pipeline import component
from pipeline.chain import CHAIN, stage
from pipeline.config import RunConfig, read_run, remote_inputs
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, StorageError, UnlearnError
from pipeline.orders import ACTS
from pipeline.stages.runner import run_stage
from pipeline.storage import check_access, publish_bytes, read_bytes

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, so that a killed launcher leaves no orphan at work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _check(file: str) -> None:
    """Ask the storage for its leave, decode every part of a resolved configuration, build the model without memory."""
    import torch

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
    from pipeline.engine.distributed import join_group, leave_group

    group = join_group(timeout_seconds=config.launch.timeout_seconds)
    run_stage(name, folder, rank=group.rank, world_size=group.world_size)
    # Only after success: on a failure ranks disagree, and a collective would hang.
    leave_group()


def _report(fault: UnlearnError) -> None:
    path = os.environ.get("UNLEARN_ERROR_FILE", "")
    if not path:
        print(f"error: {fault}", file=sys.stderr)
        return
    facts = {"kind": type(fault).__name__, "message": fault.message, "cure": fault.cure, "exit_code": fault.exit_code}
    with open(path, "a", encoding="utf-8") as stream:  # one small write: ranks do not cut into each other's lines
        stream.write(json.dumps({**facts, "attempt": _attempt()}) + "\n")


def _attempt() -> int:
    """How often torchrun's agent has started the ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _final() -> int:
    """Exit code of an earlier attempt's failure that trying again cannot cure; 0 without one."""
    if not _attempt():
        return 0
    with contextlib.suppress(OSError):
        for line in Path(os.environ.get("UNLEARN_ERROR_FILE", os.devnull)).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError):
                entry = json.loads(line)
                if entry["kind"] != StorageError.__name__:
                    return int(entry["exit_code"])
    return 0


def main(arguments: list[str]) -> int:
    """Run and return the exit code; a bug of ours escapes as a traceback."""
    _die_with_parent()
    if code := _final():
        return code
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
        _report(fault)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
