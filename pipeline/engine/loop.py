"""The loop, on one screen. Phases differ only in what is passed in."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.engine.backend import Backend
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import ProcessGroup
from pipeline.engine.guard import Guard
from pipeline.engine.telemetry import Telemetry
from pipeline.errors import Preempted

__all__ = ["Feed", "Losses", "fit"]


class Losses(Protocol):
    """What a loss function returns: this rank's share of the loss, and measures that are equal on all ranks."""

    @property
    def total(self) -> Tensor: ...
    @property
    def measures(self) -> Mapping[str, float]: ...
    @property
    def samples(self) -> int: ...


class Feed(Protocol):
    """Batches by step number, with a count of what was used; its state is a checkpoint's `seen` and `digests`."""

    def batch(self, step: int) -> Any: ...
    def count(self, batch: Any) -> None: ...
    def totals(self, group: ProcessGroup) -> tuple[tuple[int, ...], tuple[str, ...]]: ...
    def restore(self, seen: tuple[int, ...], digests: tuple[str, ...], rank: int) -> None: ...


def fit(
    backend: Backend,
    feed: Feed,
    loss_fn: Callable[[nn.Module, Any], Losses],
    *,
    steps: int,
    save_every: int,
    background: bool,
    guard: Guard,
    checkpoints: Checkpoints,
    telemetry: Telemetry,
    group: ProcessGroup,
) -> tuple[TrainState, str]:
    """Run one phase to its end.

    `background`: checkpoints are written while steps go on, from a copy in memory.

    Returns:
        The final state, and why the phase ended: `budget`, or the guard's reason.

    Raises:
        Preempted: asked to leave; the state is saved.
    """
    state = _restored(backend, feed, checkpoints, group, wait=not background)
    telemetry.start(state.step, steps)
    while state.step < steps:
        started = group.mark()
        batch = feed.batch(state.step)
        group.fed()
        losses = loss_fn(backend.model, batch)
        refusal = guard.refuse(losses.measures)
        if not refusal:
            flags = torch.tensor([float(group.leaving), float(checkpoints.written)])
            bad, leaving, written = group.sum(torch.cat([backend.backward(losses.total).cpu()[None], flags]))
            refusal = "non-finite gradient" if bad else ""
        if refusal:
            return _last_good(state, backend, feed, checkpoints, group), refusal
        backend.step(state.step)
        if checkpoints.pending and written == group.world_size:
            checkpoints.settle()
        feed.count(batch)
        state = _advanced(state, losses, time.monotonic() - started)
        telemetry.step(state)
        verdict = guard.probe(state.step)
        if verdict is not None and verdict.act == "back":
            return _last_good(state, backend, feed, checkpoints, group), verdict.reason
        if verdict is not None and verdict.act == "stop":
            # Not saved: whoever goes on from a checkpoint takes the steps after it, and must come by this verdict again.
            return _counted(state, feed, group), verdict.reason
        if verdict is not None or state.step % save_every == 0 or leaving:
            state = _saved(state, backend, feed, checkpoints, group, wait=bool(leaving) or not background)
            telemetry.flush()
        if leaving:
            raise Preempted(f"asked to leave at step {state.step}; the state is saved", "run the same command again")
    return _counted(state, feed, group), "budget"


def _advanced(state: TrainState, losses: Losses, seconds: float) -> TrainState:
    return dataclasses.replace(
        state,
        step=state.step + 1,
        sample_gradients=state.sample_gradients + losses.samples,
        seconds=state.seconds + seconds,
        measures=dict(losses.measures),
    )


def _counted(state: TrainState, feed: Feed, group: ProcessGroup) -> TrainState:
    seen, digests = feed.totals(group)
    return dataclasses.replace(state, seen=seen, digests=digests)


def _saved(
    state: TrainState, backend: Backend, feed: Feed, checkpoints: Checkpoints, group: ProcessGroup, *, wait: bool
) -> TrainState:
    state = dataclasses.replace(_counted(state, feed, group), tally=backend.tally)
    checkpoints.save(backend, state, wait=wait)
    return state


def _restored(backend: Backend, feed: Feed, checkpoints: Checkpoints, group: ProcessGroup, *, wait: bool) -> TrainState:
    """Continue from the newest checkpoint; without one, save the start, so that there is always a good state."""
    state = checkpoints.restore(backend)
    if state is None:
        return _saved(TrainState(), backend, feed, checkpoints, group, wait=wait)
    feed.restore(state.seen, state.digests, group.rank)
    backend.recall(state.tally)
    return state


def _last_good(spent: TrainState, backend: Backend, feed: Feed, checkpoints: Checkpoints, group: ProcessGroup) -> TrainState:
    """Go back to the newest checkpoint; what the abandoned steps cost stays on the bill."""
    state = checkpoints.restore(backend)
    assert state is not None  # _restored saved one
    feed.restore(state.seen, state.digests, group.rank)
    backend.recall(state.tally)
    return dataclasses.replace(state, sample_gradients=spent.sample_gradients, seconds=spent.seconds)
