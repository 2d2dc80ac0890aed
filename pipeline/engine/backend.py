"""DeepSpeed behind six verbs: forward, backward, step, save, load, weights. ZeRO 0 to 3, fp32, bf16 and autocast.

DeepSpeed averages gradients over ranks, so a loss function gives each rank its share of the global loss times the
number of ranks; results then do not depend on the world size beyond rounding.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import EngineConfig
from pipeline.engine import universal
from pipeline.engine.checkpoint import Files
from pipeline.engine.distributed import ProcessGroup
from pipeline.engine.files import SHARD, Copies, guard_files, whole_files
from pipeline.engine.flat import FlatSteps
from pipeline.engine.fused import FusedSteps
from pipeline.engine.layout import pieces_of
from pipeline.engine.precision import emulated
from pipeline.errors import CheckpointError, ConfigError
from pipeline.records import record

log = logging.getLogger("unlearn")

TAG = "engine"
BUCKET = 500_000_000
"""Elements of gradients that are reduced at once, at most: DeepSpeed's own number."""

__all__ = ["Backend", "OptimizerConfig", "quiet_deepspeed"]


@record
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then a half cosine to zero or a constant."""

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    decay: bool = True
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Beta_1."""
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of the 0-based `step`; a pure function, so a resumed run needs no scheduler state."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * rise * (0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay else 1.0)


def quiet_deepspeed(config: EngineConfig) -> Any:
    """Import DeepSpeed with its noise down and its just-in-time CPU op off unless asked for and possible."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        compiler = shutil.which("c++") or shutil.which("g++")
        if not (config.jit_ops and compiler):
            # On CPU, init_distributed would compile this op; gloo carries the collectives without it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            why = "engine.jit_ops is off" if not config.jit_ops else "no C++ compiler here"
            log.info("DeepSpeed's just-in-time shared-memory op is switched off (%s): gloo carries the collectives", why)
    return deepspeed


class Backend:
    """One model under DeepSpeed for one phase.

    Args:
        model: built and loaded; ZeRO 3 partitions it here (building it under `zero.Init` would lose its weights).
        engine: ZeRO stage and precision.
        optimizer: schedule and clipping.
        micro_batch: samples a rank gets per step, for DeepSpeed's bookkeeping.
        steps: makes an optimizer of our own steps, which does its own clipping, instead of AdamW; see `arm`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: EngineConfig,
        optimizer: OptimizerConfig,
        micro_batch: int,
        group: ProcessGroup,
        steps: Callable[[list[nn.Parameter]], FusedSteps] | None = None,
    ) -> None:
        deepspeed = quiet_deepspeed(engine)
        if not torch.distributed.is_initialized() and group.world_size == 1:
            store = torch.distributed.HashStore()
            kind = "gloo" if group.device.type == "cpu" else "nccl"
            torch.distributed.init_process_group(kind, store=store, rank=0, world_size=1)
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
        self._config, self._optimizer, self._group = engine, optimizer, group
        if slow := emulated(engine.precision, group.device):
            log.warning("%s", slow)
        self._names = [name for name, _ in model.named_parameters()]
        # Kept as they are: DeepSpeed rounds frozen weights to bf16, partitions them under ZeRO 3, and has no master of them.
        self._frozen = {n: p.detach().float().cpu().clone() for n, p in model.named_parameters() if not p.requires_grad}
        on_cpu = group.device.type == "cpu"
        flat = on_cpu and engine.zero_stage in (1, 2)
        self._bad = torch.zeros((), device=group.device)
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not flat:
            for parameter in moving:
                parameter.register_hook(self._watch)
        if engine.compile:
            _refuse_what_cannot_compile(group.device)
            model.compile()
        exact = {n: p.detach().cpu().clone() for n, p in model.named_parameters()} if engine.precision == "bf16" else {}
        settings = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_clipping": 0.0 if steps else optimizer.clip,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": engine.zero_stage,
                "stage3_param_persistence_threshold": 0,
                # One copy of each gradient less; on a GPU the copies are cheap, and keep its memory in one piece.
                **({"contiguous_gradients": False} if on_cpu and engine.zero_stage < 3 else {}),
                "reduce_bucket_size": _bucket([item.numel() for item in moving], engine.zero_stage),
                # Our own steps are capped as one vector, so one call must move all of it.
                **({"sub_group_size": 1 << 50} if steps else {}),
                **({"compute_grad_norm": False} if steps and engine.zero_stage in (1, 2) else {}),
            },
            "bf16": {"enabled": engine.precision == "bf16"},
            "torch_autocast": {
                **{"enabled": engine.precision == "autocast", "dtype": "bfloat16"},
                # On a CPU gradients stay fp32: to cast them there and back costs more than half the bytes save.
                **({"lower_precision_safe_modules": []} if on_cpu else {}),
            },
            "steps_per_print": 2**31,
        }
        # One pass instead of eight, without temporaries. Not on GPUs: there it wants its count of steps in their memory, where a
        # universal checkpoint of DeepSpeed does not put it.
        self._fused = on_cpu or None
        self._steps = steps(moving) if steps else None
        moves = self._steps or torch.optim.AdamW(
            moving,
            lr=optimizer.learning_rate,
            betas=(optimizer.momentum, 0.95),
            weight_decay=optimizer.weight_decay,
            fused=self._fused,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine, *_ = deepspeed.initialize(model=model, optimizer=moves, config=settings, dist_init_required=False)
        if flat:
            self._bad = FlatSteps(self.engine.optimizer, group, optimizer.clip, self._steps).bad
        self._restore_masters(exact)
        self._held: list[tuple[Any, str]] = []
        self._copies = Copies()
        guard_files(self.engine, group.rank, self._held)

    def _restore_masters(self, exact: dict[str, Tensor]) -> None:
        """Set the fp32 master weights to what the model came with: DeepSpeed makes them from the weights cast to bf16.

        At stage 0 it hides them; there a phase starts from the rounded weights.
        """
        from deepspeed.utils import (
            safe_get_full_fp32_param,
            safe_get_local_fp32_param,
            safe_set_full_fp32_param,
            safe_set_local_fp32_param,
        )

        for name, parameter in zip(self._names, self.engine.module.parameters(), strict=True):
            if not exact or name in self._frozen:
                continue
            whole = exact[name].to(self._group.device)
            if hasattr(parameter, "ds_id"):
                # By hand, because DeepSpeed's setter fails where the last rank's partition holds padding alone.
                size = safe_get_local_fp32_param(parameter).numel()
                padded = functional.pad(whole.flatten(), (0, size * self._group.world_size - whole.numel()))
                safe_set_local_fp32_param(parameter, padded[size * self._group.rank :][:size])
            elif safe_get_full_fp32_param(parameter) is not None:
                safe_set_full_fp32_param(parameter, whole)

    def _watch(self, gradient: Tensor) -> None:
        # Checked here, before ZeRO reduces: a non-finite norm there is encoded as -1 and clipping by it turns the
        # step's sign (DeepSpeed issue 8614).
        # A sum is one pass, where a test of each element takes five; it is finite unless an element is not, or they overflow.
        self._bad += (~torch.isfinite(gradient.sum())).float()

    @property
    def model(self) -> nn.Module:
        """The wrapped model; calling it is a forward pass."""
        wrapped: nn.Module = self.engine
        return wrapped

    def backward(self, loss: Tensor) -> Tensor:
        """Back-propagate this rank's share; returns how many of its gradients, or blocks of them, are not finite, fp32 []."""
        self._bad.zero_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine.backward(loss)
        return self._bad

    def step(self, step: int) -> None:
        """Clip and move the weights with the learning rate of 0-based `step`."""
        for parameters in self.engine.optimizer.param_groups:
            parameters["lr"] = self._optimizer.rate(step)
            if not self._steps:  # a checkpoint brings what suited the device that it was written on
                parameters["fused"] = self._fused
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine.step()

    def arm(self, anchor: Mapping[str, Tensor] | None) -> None:
        """Let our own steps begin; every rank must call.

        Args:
            anchor: centre of the balls, whole tensors by parameter name; None: zero.

        Raises:
            ConfigError: this engine keeps no fp32 masters.
        """
        assert self._steps is not None
        whole = self._config.zero_stage == 0  # every rank holds all of it
        self._steps.arm(pieces_of(self.engine, self._names, self._steps), anchor, counts=not whole or self._group.rank == 0)

    @property
    def tally(self) -> dict[str, float]:
        """What our own steps have measured so far; a checkpoint keeps it."""
        return dict(self._steps.tally) if self._steps else {}

    def recall(self, tally: Mapping[str, float]) -> None:
        """Go on from a checkpoint's `tally`."""
        if self._steps:
            self._steps.tally = dict(tally)

    @contextlib.contextmanager
    def evaluating(self) -> Any:
        """Forward passes without gradients."""
        self.engine.eval()
        try:
            with torch.no_grad():
                yield self.engine
        finally:
            self.engine.train()

    def save(self, folder: str, *, copy: bool) -> Callable[[], Files]:
        """Gather sharded weights and optimizer states, to be written below the local `folder`; every rank must call.

        Args:
            copy: hold a copy in the machine's memory, so that steps may be taken before it is written.

        Returns:
            What writes them, once and from any thread, before the next save; it returns which files this rank has written.
        """
        self._held.clear()
        with warnings.catch_warnings(), self._moments(written=False), whole_files(folder):
            warnings.simplefilter("ignore")
            self.engine.save_checkpoint(folder, tag=TAG, save_latest=False)
        copies = self._copies if copy else Copies()
        # Without a copy a rank's own masters are still parts of all weights, which its file must not hold whole.
        held = [(copies.of(state, views=not copy) if copy or SHARD in path else state, path) for state, path in self._held]
        self._held.clear()

        def write() -> Files:
            paths = []
            for state, path in held:
                with whole_files(folder):
                    torch.save(state, path)
                paths.append(os.path.relpath(path, folder))
            held.clear()
            self._copies.give_back()
            return Files(own=[path for path in paths if SHARD in path], shared=[path for path in paths if SHARD not in path])

        return write

    def load(self, folder: str) -> None:
        """Restore what `save` wrote at the same world size; every rank must call, and needs its own and the shared files.

        Raises:
            CheckpointError: a file holds other things than plain data, or there is none.
        """
        if not os.path.exists(self.engine._get_ckpt_name(folder, TAG)):
            raise CheckpointError(f"{folder}: holds no checkpoint of DeepSpeed", "remove the folder and run again")
        with warnings.catch_warnings(), self._moments(written=True):
            warnings.simplefilter("ignore")
            self.engine.load_checkpoint(folder, tag=TAG)

    def _moments(self, *, written: bool) -> contextlib.AbstractContextManager[None]:
        """What DeepSpeed's checkpoints must find of an optimizer; AdamW has it."""
        return self._steps.moments(written=written) if self._steps else contextlib.nullcontext()

    def convert(self, folder: str, files: Sequence[str], target: str) -> None:
        """Make `target` from all files that all ranks wrote with `save`, for any world size; one process calls.

        Raises:
            CheckpointError: a file holds other things than plain data.
        """
        if self._config.zero_stage > 0:  # nothing is split otherwise
            universal.convert(folder, files, target)

    def load_converted(self, folder: str, target: str) -> None:
        """Restore what was saved in `folder` at another world size from what `convert` made of it; every rank must call.

        Frozen weights stay as given. Raises like `load`.
        """
        if self._config.zero_stage > 0:
            with self._moments(written=True):
                universal.load(self.engine, target)
        else:
            self.load(folder)

    def weights(self) -> dict[str, Tensor]:
        """Consolidated fp32 master weights on the CPU, by parameter name, and buffers; every rank must call."""
        from deepspeed.utils import safe_get_full_fp32_param

        full: dict[str, Tensor] = {}
        for name, parameter in zip(self._names, self.engine.module.parameters(), strict=True):
            if name in self._frozen:
                full[name] = self._frozen[name]
                continue
            master = safe_get_full_fp32_param(parameter)
            full[name] = (parameter if master is None else master).detach().float().cpu().clone().reshape(self._shape(parameter))
        for name, buffer in self.engine.module.named_buffers():
            full[name] = buffer.detach().cpu().clone()
        return full

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 empties the parameter itself
        return shape

    def close(self) -> None:
        """Free what the engine holds."""
        self.engine.destroy()


def _bucket(sizes: Sequence[int], stage: int) -> int:
    """Elements of gradients that are reduced at once. Of its default size the bucket would be 2 GB for any model; ZeRO 3 keeps
    it between steps, where as many as all gradients would undo what splitting them saves."""
    whole = sum(sizes)
    return min(BUCKET, whole if stage < 3 else max(*sizes, whole // 4, 1))


def _refuse_what_cannot_compile(device: torch.device) -> None:
    """Raise ConfigError where torch.compile would end in a traceback of its C++ compiler, which it needs on a CPU."""
    if device.type != "cpu":
        return
    if not (shutil.which("c++") or shutil.which("g++")):
        raise ConfigError("engine.compile: no C++ compiler here", "install g++, or set engine.compile=false")
    if " " in os.path.dirname(torch.__file__):
        cure = "install into a folder without a space in its path, or set engine.compile=false"
        raise ConfigError(f"engine.compile: torch cannot link below a path with a space: {os.path.dirname(torch.__file__)}", cure)
