"""DeepSpeed checkpoints at another number of ranks, by DeepSpeed's universal form: one folder a parameter, whole tensors.

DeepSpeed unpickles what it converts and loads. Here all of it passes through `plain_loading`, which takes nothing that could
run code.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.engine.files import plain_loading, whole_files

__all__ = ["convert", "load"]


def convert(folder: str, files: Sequence[str], target: str) -> None:
    """Write the universal form of a DeepSpeed checkpoint of ZeRO 1 to 3. Reads all its files, in this process alone.

    Args:
        files: those that belong to the checkpoint, relative to `folder`; others there are not looked at.
        target: an empty folder.

    Raises:
        CheckpointError: a file holds other things than plain data.
        StorageError: `target` could not be written whole.
    """
    from deepspeed.checkpoint import ds_to_universal

    # DeepSpeed puts paths into patterns, where a bracket in the name of a folder would lose files: it is shown links.
    with tempfile.TemporaryDirectory(prefix="universal-") as links:
        source, out = os.path.join(links, "source"), os.path.join(links, "target")
        os.mkdir(source)
        for path in files:
            os.symlink(os.path.abspath(os.path.join(folder, path)), os.path.join(source, os.path.basename(path)))
        os.symlink(os.path.abspath(target), out)
        options = argparse.Namespace(
            input_folder=source,
            output_folder=out,
            num_extract_workers=1,  # more of them would be forked, beside threads and an open device
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # ZeRO 1 and 2 do not write it themselves
        )
        silence = io.StringIO()
        with plain_loading(folder), whole_files(target), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            ds_to_universal.main(options)


def load(engine: Any, folder: str) -> None:
    """Load what `convert` wrote into a DeepSpeed engine of the same model; every rank must call.

    Raises:
        CheckpointError: a file holds other things than plain data.
    """
    head, tag = os.path.split(folder)
    engine._config.load_universal_checkpoint = True
    try:
        with plain_loading(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path, _ = engine.load_checkpoint(head, tag=tag)
    finally:
        engine._config.load_universal_checkpoint = False
    # DeepSpeed restores parameters only, and under ZeRO 3 it gives all groups one step counter, which each would advance.
    module = engine.checkpoint_engine.load(path, map_location="cpu")["module"]
    for name, buffer in engine.module.named_buffers():
        if name in module:
            buffer.copy_(module[name])
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
