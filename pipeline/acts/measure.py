"""What the phases of a run compute: parameters, FLOP and memory of a step, traced through the run's own losses without data."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import component
from pipeline.acts.tracing import Cost, Tracer
from pipeline.chain import OFF, PHASES
from pipeline.data.stream import Batch
from pipeline.data.tasks.base import Task
from pipeline.draws import draws_of_rows
from pipeline.engine.backend import quiet_deepspeed
from pipeline.methods.base import LossContext, Method, PhasePlan, plain_loss
from pipeline.models.base import ImageModel
from pipeline.orders import Linear, MeasureAnswer, MeasureOrder, PhaseFacts
from pipeline.privacy.mechanism import certify_config
from pipeline.stages import calibrate, evaluate, forget, retain, train

__all__ = ["forget_peak", "load_all", "resident_bytes", "run"]

TRACED_BYTES = 2 << 20
"""Real images of about so many bytes go through a trace; more would only take time."""
MOST_TRACED = 64


def run(order: MeasureOrder) -> MeasureAnswer:
    """Trace training, the method's phases, and the completion of an image.

    Raises:
        ConfigError: a part that cannot be built, or a model that cannot do the task.
    """
    load_all(order)
    process_bytes, start = resident_bytes("VmRSS"), time.time() - order.started
    config, scene = order.config, _Scene(order)
    training = _Plan(phase="train", loss=plain_loss(scene.context), reads=("original",), sizes=(config.train.batch_size,))
    phases = [scene.facts(training)]
    calibration = scene.calibration()
    if calibration.get("shadow_share"):
        phases.append(scene.facts(dataclasses.replace(training, phase="calibrate", reads=("retain",))))
    for name, part in PHASES.items():
        if config.method.get(part) in OFF or name == "calibrate":
            continue
        if name == "certify":
            noisy = certify_config(config.method[part])
            assert noisy is not None
            planned = dataclasses.replace(training, phase=name, reads=("retain",), sizes=(noisy.batch_size,))
            phases.append(dataclasses.replace(scene.facts(planned), steps=noisy.steps))
        else:
            phases.append(scene.facts(scene.planned(name)))
    answer = Tracer("fp32")  # as evaluation computes
    model = scene.model(answer)
    sizes = (scene.few, 2 * scene.few)
    whole = [answer.inference(functools.partial(scene.complete, model, size), model) for size in sizes]
    looks = [answer.inference(functools.partial(scene.context.per_sample, model, scene.batch(size)), model) for size in sizes]
    return MeasureAnswer(
        image_bytes=model.image_size**2 * model.channels,
        draws=model.probe_draws,
        forward_flop=looks[0].flop / scene.few,
        forward_bytes=_line(scene.few, [cost.bytes for cost in looks]),
        complete_flop=whole[0].flop / scene.few,
        complete_bytes=_line(scene.few, [cost.bytes for cost in whole]),
        process_bytes=process_bytes,
        start_seconds=start,
        phases=tuple(phases),
        calibration=calibration,
    )


def load_all(order: Any) -> None:
    """Import what a rank of a training stage has loaded before it builds its model."""
    quiet_deepspeed(order.config.engine)
    for group in component.GROUPS:
        component.load(group, getattr(order.config, group)["component"])
    assert all(stage.run for stage in (calibrate, evaluate, forget, retain, train))
    # As an optimizer and DeepSpeed's engine do when they are made, and telemetry does on rank 0.
    for name in ("torch._dynamo", "torch._inductor", "torch.utils.tensorboard"):
        importlib.import_module(name)


def resident_bytes(field: str) -> int:
    """`VmRSS` (now), `RssFile` (of it, mapped files) or `VmHWM` (at its peak) of this process in bytes; 0 where the system
    does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def forget_peak() -> None:
    """Give freed blocks back and let `VmHWM` begin anew at what is resident now, where the system can: proc(5), clear_refs;
    malloc_trim(3)."""
    file = Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        file.write_text("5", encoding="ascii")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is traced of a phase; `plan` is the method's own, without it the phase is plain training."""

    phase: str
    loss: Callable[[nn.Module, Any], Any]
    reads: tuple[str, ...]
    sizes: tuple[int, ...]
    plan: PhasePlan | None = None


class _Scene:
    """Everything a loss needs: a task, batches of grey images, frozen companions, and sums that say 1 of everything."""

    def __init__(self, order: MeasureOrder) -> None:
        self._config, self._groups = order.config, order.groups or ("class",)
        self._task: Task = component.build("task", order.config.task)
        with torch.device("meta"):
            shape: ImageModel = component.build("model", order.config.model)
        self._shape = (shape.image_size, shape.image_size, shape.channels)
        self.few = max(1, min(MOST_TRACED, TRACED_BYTES // math.prod(self._shape)))
        self._tracer = Tracer(order.config.engine.precision, gpu=order.gpu)
        self._companions = {
            name: self.model(self._tracer, cast=False).eval().requires_grad_(False) for name in ("teacher", "shadow")
        }
        self._moving: ImageModel = shape
        self._asked: set[str] = set()
        self._sums = 0
        self.context = LossContext(
            task=self._task,
            device=torch.device("cpu"),
            world_size=1,
            sum=self._sum,
            shape=lambda: self._moving,
            teacher=lambda: self._companion("teacher"),
            shadow=lambda: self._companion("shadow"),
            shadowed=frozenset(self._shadowed()),
        )

    def _sum(self, values: Tensor) -> Tensor:
        self._sums += 1
        return torch.ones(values.shape, dtype=torch.float64)

    def _companion(self, name: str) -> ImageModel:
        self._asked.add(name)
        return self._companions[name]

    def _decoded(self) -> Any:
        return component.decode_config("method", self._config.method)

    def _shadowed(self) -> list[int]:
        """The groups for which calibration trains a shadow: classes, where the level is not given."""
        decoded = self._decoded()
        if getattr(decoded, "calibration", None) is None or getattr(decoded, "level", "calibrate") != "calibrate":
            return []
        return [number for number, kind in enumerate(self._groups) if kind == "class"]

    def calibration(self) -> dict[str, float]:
        """See `MeasureAnswer`."""
        found = getattr(self._decoded(), "calibration", None)
        if found is None or self._config.method.get(PHASES["calibrate"]) in OFF:
            return {}
        return {"shadow_share": found.shadow_share if self._shadowed() else 0.0, "samples": found.samples}

    def model(self, tracer: Tracer, *, cast: bool = True) -> Any:
        """The run's model with fake weights."""
        return tracer.model(lambda: component.build("model", self._config.model), cast=cast)

    def planned(self, name: str) -> _Plan:
        """The method's plan of a phase, with every group at work."""
        method: Method = component.build("method", self._config.method, [1.0] * len(self._groups), self.context)
        plan = method.forgetting() if name == "forget" else method.retention()
        sizes = (self._config.train.batch_size,) if plan.as_training else plan.batch_sizes
        return _Plan(phase=name, loss=plan.loss, reads=plan.reads, sizes=sizes, plan=plan)

    def facts(self, planned: _Plan) -> PhaseFacts:
        """Trace two batches of a phase and draw a line through them."""
        plan, model = planned.plan, self.model(self._tracer)
        if planned.phase == "calibrate" or (plan is not None and plan.start == "before"):
            model.prepare_unlearning()
        if plan is not None and plan.trains is not None:
            kept = {parameter for module in plan.trains(model) for parameter in module.parameters()}
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in kept and parameter.requires_grad)
        self._moving, engine = model, self._tracer.wrapped(model)
        smallest = min(planned.sizes)
        parts = [max(1, round(size / smallest)) for size in planned.sizes]
        turns = max(1, self.few // sum(parts))
        costs: list[Cost] = []
        calls = {"loud": 0, "quiet": 0}
        hooks = [_counted(engine, calls, "loud"), *(_counted(other, calls, "quiet") for other in self._companions.values())]
        for times in (turns, 2 * turns):
            self._asked.clear()
            self._sums = 0
            calls.update(loud=0, quiet=0)
            batches = tuple(self.batch(part * times) for part in parts)
            given = batches if len(batches) > 1 else batches[0]
            costs.append(
                self._tracer.training(lambda: planned.loss(engine, given).total, model, *self._companions.values())  # noqa: B023
            )
        for hook in hooks:
            hook.remove()
        sizes, samples = self._tracer.sizes(model), turns * sum(parts)
        return PhaseFacts(
            phase=planned.phase,
            parameters=sizes.parameters,
            trained=sizes.trained,
            largest=sizes.largest,
            buffer_bytes=sizes.buffer_bytes,
            flop=_line(samples, [cost.flop for cost in costs]),
            activations=_line(samples, [cost.bytes for cost in costs]),
            companions=len(self._asked),
            calls=calls["loud"],
            quiet_calls=calls["quiet"],
            sums=self._sums,
            reads=planned.reads,
            batch_sizes=planned.sizes,
            passes=plan.passes if plan else None,
            share=plan.share if plan else None,
            probe_steps=plan.probe_steps if plan and plan.retain_floor is not None else 0,
            leveled=plan is not None and any(level is not None for level in plan.levels),
            prepares=plan is not None and plan.prepare is not None,
        )

    def batch(self, samples: int) -> Batch:
        """A batch of grey images, of all groups in turn."""
        rows = np.arange(samples)
        return Batch(
            images=np.full((samples, *self._shape), 127, dtype=np.uint8),
            groups=rows % len(self._groups),
            weights=np.ones(samples, dtype=np.float32),
            rows=rows,
            labels=np.zeros(samples, dtype=np.int64),
            keys=[str(row) for row in rows],
            draws=draws_of_rows(rows, 0),
        )

    def complete(self, model: ImageModel, samples: int) -> Tensor:
        """Complete so many images."""
        visible, _, region, draws = self.context.views(self.batch(samples))
        return model.complete(visible, region, draws)


def _counted(module: nn.Module, calls: dict[str, int], name: str) -> Any:
    """Count the passes through a module; the handle ends it."""

    def count(*given: Any) -> None:
        calls[name] += 1

    return module.register_forward_pre_hook(count)


def _line(samples: int, values: list[int]) -> Linear:
    """The line through a value at `samples` and one at twice as many."""
    each = (values[1] - values[0]) / samples
    return Linear(fixed=max(0.0, values[0] - each * samples), each=each)
