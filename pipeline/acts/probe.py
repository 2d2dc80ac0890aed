"""The times of this machine, taken with the run's own engine by all ranks of a node at once: they share cores and memory."""

from __future__ import annotations

import io
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline import component
from pipeline.acts.measure import forget_peak, load_all, resident_bytes
from pipeline.data.images import decode_into
from pipeline.data.reader import decoding_threads
from pipeline.data.stream import Batch
from pipeline.draws import draws_of_rows
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import ProcessGroup, join_group, leave_group
from pipeline.methods.base import LossContext, Losses, plain_loss
from pipeline.models.base import ImageModel
from pipeline.orders import Machine, ProbeOrder

__all__ = ["run"]

SECONDS = 3.0
"""Steps of one size take about so long in each of two turns ..."""
LEAST, MOST = 3, 12
"""... within these numbers of steps."""
MESSAGES = tuple(4**power for power in range(4, 14))
"""Bytes of the all-reduces, up to 64 MiB."""
ROUNDS = 7


def run(order: ProbeOrder) -> Machine:
    """Take all times; every rank of the group calls, and gets the same answer.

    Raises:
        ConfigError: a part that cannot be built.
    """
    load = os.getloadavg()[0]
    group = join_group()
    load_all(order)
    process_bytes, mapped_bytes = resident_bytes("VmRSS"), resident_bytes("RssFile")
    config = order.config
    torch.manual_seed(0)
    model: ImageModel = component.build("model", config.model)
    shape = (model.image_size, model.image_size, model.channels)
    context = LossContext(
        task=component.build("task", config.task),
        device=group.device,
        world_size=group.world_size,
        sum=group.sum,
    )
    # So small a rate that the weights stay as they are, whatever the images; a step takes as long as any.
    optimizer = OptimizerConfig(learning_rate=1e-9, steps=1000)
    backend = Backend(
        model.to(group.device), engine=config.engine, optimizer=optimizer, micro_batch=max(order.samples), group=group
    )
    start = time.time() - order.started
    stepper = _Stepper(backend, plain_loss(context), shape, group)
    first = sum(stepper.step(min(order.samples)))
    taken, peaks = _sweep(stepper, order.samples, group)
    look_bytes = _looking(backend, context, stepper, order.look)
    written, seconds = _checkpoint(order.folder, backend, group)
    backend.close()
    del backend, model
    answer = Machine(
        ranks=group.world_size,
        threads=torch.get_num_threads(),
        step_seconds={str(samples): _slowest(group, loss) for samples, (loss, _, _) in taken.items()},
        call_seconds=_slowest(group, taken[order.samples[-1]][2]),
        update_seconds=_slowest(group, statistics.median(update for _, update, _ in taken.values())),
        first_step_seconds=_slowest(group, first),
        start_seconds=_slowest(group, start),
        network=tuple((size, _slowest(group, _all_reduce(size, group))) for size in MESSAGES) if group.world_size > 1 else (),
        decode_seconds=_slowest(group, _decoding(order.sample_bytes, shape, group)) if order.sample_bytes else None,
        decode_threads=decoding_threads(config.reading),
        checkpoint_bytes=written,
        checkpoint_seconds=seconds,
        process_bytes=max(group.gather(process_bytes)),
        mapped_bytes=max(group.gather(mapped_bytes)),
        peak_bytes={str(samples): max(group.gather(peak)) for samples, peak in peaks.items()},
        look=order.look,
        look_bytes=max(group.gather(look_bytes)),
        load=max(group.gather(load)),
    )
    leave_group()
    return answer


def _slowest(group: ProcessGroup, seconds: float) -> float:
    return max(float(item) for item in group.gather(seconds))


class _Stepper:
    """Steps as the engine's loop takes them, apart from reading images."""

    def __init__(self, backend: Backend, loss: Callable[..., Losses], shape: tuple[int, int, int], group: ProcessGroup) -> None:
        self._backend, self._loss, self._shape, self._group = backend, loss, shape, group
        self._images = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
        self._done = 0

    def batch(self, samples: int) -> Batch:
        """A batch of this rank; other draws at every step."""
        rows = np.arange(samples) + samples * self._group.rank
        return Batch(
            images=np.broadcast_to(self._images, (samples, *self._shape)).copy(),
            groups=np.full(samples, -1),
            weights=np.ones(samples, dtype=np.float32),
            rows=rows,
            draws=draws_of_rows(rows, 0, self._done),
        )

    def step(self, samples: int, parts: int = 1) -> tuple[float, float]:
        """Seconds of loss and backward, of samples in so many passes through the model, and of the optimizer."""
        batches = [self.batch(samples // parts) for _ in range(parts)]
        self._group.barrier()
        times = [time.perf_counter()]
        losses = [self._loss(self._backend.model, batch).total for batch in batches]
        bad = self._backend.backward(torch.stack(losses).sum())
        self._group.sum(torch.stack([bad.cpu(), torch.tensor(0.0)]))
        times.append(time.perf_counter())
        self._backend.step(self._done)
        if self._group.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        self._done += 1
        return times[1] - times[0], times[2] - times[1]

    def count(self, samples: int) -> int:
        """How many steps of a size to take; the same on all ranks. Takes one that does not count."""
        mean = float(self._group.sum(torch.tensor(sum(self.step(samples))))) / self._group.world_size
        return max(LEAST, min(MOST, round(SECONDS / max(mean, 1e-6))))


def _looking(backend: Backend, context: LossContext, stepper: _Stepper, samples: int) -> int:
    """Bytes that measuring the losses of so many images takes, without gradient, at its peak. What steps have freed, and would
    hide it, goes back to the system first."""
    batch = stepper.batch(samples)
    forget_peak()
    held = resident_bytes("VmRSS")
    with backend.evaluating() as engine:
        context.per_sample(engine, batch)
    return max(0, resident_bytes("VmHWM") - held)


def _sweep(
    stepper: _Stepper, sizes: Sequence[int], group: ProcessGroup
) -> tuple[dict[int, tuple[float, float, float]], dict[int, int]]:
    """Seconds of loss, of update, and of one pass more, and peaks of memory, by the samples of a step.

    Sizes go up, because a peak is a peak of all that was before; and then a second time, so that what slows the machine for a
    while does not slow one size alone.
    """
    found: dict[int, list[tuple[float, float]]] = {samples: [] for samples in sizes}
    split: dict[int, list[float]] = {samples: [] for samples in sizes}
    peaks: dict[int, int] = {}
    for turn in range(2):
        for samples in sizes:
            for _ in range(stepper.count(samples)):
                found[samples].append(stepper.step(samples))
                if turn and samples > 1:
                    split[samples].append(stepper.step(samples - samples % 2, 2)[0])
            peaks.setdefault(samples, resident_bytes("VmHWM"))
    largest = sizes[-1]
    peaks[largest] = max(peaks[largest], resident_bytes("VmHWM"))
    answer = {}
    for samples, times in found.items():
        loss, update = (statistics.median(column) for column in zip(*times, strict=True))
        answer[samples] = loss, update, max(0.0, statistics.median(split[samples]) - loss) if split[samples] else 0.0
    return answer, peaks


def _all_reduce(size: int, group: ProcessGroup) -> float:
    """Seconds of an all-reduce of so many bytes."""
    values, seconds = torch.zeros(size // 4, device=group.device), []
    for _ in range(ROUNDS):
        torch.distributed.barrier()
        begun = time.perf_counter()
        torch.distributed.all_reduce(values)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def _checkpoint(folder: str, backend: Backend, group: ProcessGroup) -> tuple[int, float]:
    """Bytes of a checkpoint of all ranks, and the seconds to write and hash it."""
    checkpoints = Checkpoints(folder, "probe", config_digest="probe", group=group)
    group.barrier()
    begun = time.perf_counter()
    checkpoints.save(backend, TrainState())
    group.barrier()
    seconds = time.perf_counter() - begun
    written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    group.barrier()
    checkpoints.clear()
    return written, seconds


def _decoding(size: int, shape: tuple[int, int, int], group: ProcessGroup) -> float:
    """Seconds to decode a JPEG of about so many bytes to the model's input, on one thread of each rank."""
    data, out, seconds = _photograph(size), np.empty(shape, dtype=np.uint8), []
    group.barrier()
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(8):
            decode_into(out, data, fit="crop", max_pixels=1 << 30, where="probe")
        seconds.append((time.perf_counter() - begun) / 8)
    return statistics.median(seconds)


def _photograph(size: int) -> bytes:
    """A JPEG file of about `size` bytes whose spectrum falls as that of photographs does, 4 by 3."""
    width = 400
    for _ in range(3):
        data = _jpeg(width)
        width = max(16, min(4000, round(width * math.sqrt(size / len(data)))))
    return data


def _jpeg(width: int) -> bytes:
    height = max(12, width * 3 // 4)
    noise, frequency = np.random.default_rng(0).standard_normal((height, width, 3)), _frequencies((height, width))
    spectrum = np.fft.fft2(noise, axes=(0, 1)) / frequency[:, :, None]
    waves = np.fft.ifft2(spectrum, axes=(0, 1)).real
    pixels = (127 + 50 * waves / waves.std()).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def _frequencies(sides: Sequence[int]) -> np.ndarray:
    rows, columns = (np.fft.fftfreq(side) for side in sides)
    distance = np.hypot(rows[:, None], columns[None, :])
    distance[0, 0] = 1.0
    return distance
