"""What the training stages share: the parts of a run opened for one phase, and one fit from start to outcome."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import component
from pipeline.chain import config_digest, inputs_of, read_receipt
from pipeline.claim import fence
from pipeline.data.samples import Samples, read_samples
from pipeline.data.stream import Feed, ImageReader, Stream
from pipeline.data.tasks.base import Task
from pipeline.data.tombstones import watch
from pipeline.decode import canonical, digest, sha256_text
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.checkpoint import Checkpoints, TrainState, load_weights
from pipeline.engine.distributed import ProcessGroup, group
from pipeline.engine.fused import FusedSteps
from pipeline.engine.guard import Guard
from pipeline.engine.loop import fit
from pipeline.engine.probe import sample_losses
from pipeline.engine.telemetry import Telemetry
from pipeline.engine.watchdog import rest
from pipeline.kernels.choose import choose as choose_kernels
from pipeline.kernels.reference import Kernels
from pipeline.methods.base import LossContext
from pipeline.models.base import ImageModel
from pipeline.records import Coverage, Manifest, PhaseOutcome
from pipeline.stages.runner import Job, read_manifest
from pipeline.storage import publish_bytes

__all__ = ["Phase", "choose", "retrain_steps"]

log = logging.getLogger("unlearn")

CURVE_POINTS = 50


def retrain_steps(job: Job, manifest: Manifest) -> int:
    """Optimizer steps that retraining takes: the measure of all other costs."""
    train = job.config.train
    return train.epochs * math.ceil(manifest.split("retain").samples / train.batch_size)


def choose(samples: Samples, seed: int, limit: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Positions of at most `limit` samples where `mask` holds, by lowest hash of seed and key; sorted."""
    rows = np.flatnonzero(mask) if mask is not None else np.arange(len(samples))
    if len(rows) > limit:
        rows = np.array(sorted(rows, key=lambda row: sha256_text(f"{seed}|{samples.keys[row]}"))[:limit])
    return np.sort(rows)


class Phase:
    """The parts of a run, opened for one phase of one stage.

    Args:
        name: of the phase; metrics and checkpoints go by it, and without `seed` the seed too.
        seed: of initial weights and sample order.
    """

    def __init__(self, job: Job, name: str, *, seed: int | None = None) -> None:
        self.job, self.name = job, name
        self.group: ProcessGroup = group()
        self.manifest = read_manifest(job)
        self.task: Task = component.build("task", job.config.task)
        self.seed = int(sha256_text(f"{job.config.seed}|{name}")[:8], 16) if seed is None else seed
        self.context = LossContext(
            task=self.task,
            device=self.group.device,
            world_size=self.group.world_size,
            sum=self.group.sum,
            shape=self._shape,
            teacher=functools.cache(functools.partial(self._frozen, "train", "original")),
        )
        self._model: ImageModel | None = None
        self._checkpoints: Checkpoints | None = None
        self._readers: list[ImageReader] = []
        self._feeds: list[Feed] = []

    def model(self) -> ImageModel:
        """The model with random weights that are a function of run seed and phase."""
        torch.manual_seed(self.seed)
        model: ImageModel = component.build("model", self.job.config.model)
        return model.to(self.group.device)

    def _shape(self) -> ImageModel:
        assert self._model is not None  # the backend has it
        return self._model

    def _frozen(self, stage: str, name: str) -> ImageModel:
        return self.loaded(stage, name).eval().requires_grad_(False)

    def with_shadow(self, stage: str, groups: Iterable[int]) -> LossContext:
        """The phase's context with the shadow that `stage` trained, as a stand-in for `groups`."""
        shadow = functools.cache(functools.partial(self._frozen, stage, "shadow"))
        return dataclasses.replace(self.context, shadow=shadow, shadowed=frozenset(groups))

    def loaded(self, stage: str, name: str) -> ImageModel:
        """The model with the weights `name` that `stage` published, checked against its receipt."""
        file = f"checkpoints/{name}/model.safetensors"
        relative = self.job.own(file) if "." in stage else file
        receipt = read_receipt(self.job.folder, stage)
        assert receipt is not None  # the runner saw it
        sha256 = next(ref.sha256 for ref in receipt.outputs if ref.uri == relative)
        model = self.model()
        load_weights(model, self.job.path(relative), sha256)
        return model

    def reader(self, samples: Samples, model: ImageModel) -> ImageReader:
        """A reader of `samples` in the model's size and colours."""
        config = self.job.config
        reader = ImageReader(
            samples,
            size=model.image_size,
            channels=model.channels,
            images=config.images,
            reading=config.reading,
        )
        self._readers.append(reader)
        return reader

    def samples(self, split: str) -> Samples:
        """The samples of a split."""
        return read_samples(self.job.folder, self.manifest, split)

    def feed(self, model: ImageModel, *parts: tuple[Samples, int]) -> Feed:
        """A feed of one or two streams, each of samples and a global batch size.

        Images with a tombstone are skipped, apart from those that this run is there to forget.
        """
        config, source = self.job.config, self.manifest.source_folder.rsplit("/", 1)[-1]
        streams = [
            Stream(
                self.reader(samples, model),
                batch_size=batch_size,
                seed=self.seed + number,
                salt=self.manifest.batch_digest,
                order=config.stream,
                tombstones=None if samples.split == "forget" else watch(config.output, source),
                rank=self.group.rank,
                world_size=self.group.world_size,
            )
            for number, (samples, batch_size) in enumerate(parts)
        ]
        self._feeds.append(Feed(*streams))
        return self._feeds[-1]

    def losses(self, model: Callable[..., Tensor], reader: ImageReader, rows: np.ndarray) -> np.ndarray:
        """Training losses of samples, fp64 [len(rows)], without training on them."""
        draws = self._model.probe_draws if self._model else getattr(model, "probe_draws", 1)
        return sample_losses(model, reader, rows, task=self.task, group=self.group, draws=draws)

    def backend(
        self,
        model: ImageModel,
        feed: Feed,
        optimizer: OptimizerConfig,
        steps: Callable[[list[nn.Parameter]], FusedSteps] | None = None,
    ) -> Backend:
        """DeepSpeed around the model for this phase; with `steps` for steps of our own."""
        self._model = model
        micro = sum(-(-stream.batch_size // self.group.world_size) for stream in feed.streams)
        engine = self.job.config.engine
        return Backend(model, engine=engine, optimizer=optimizer, micro_batch=micro, group=self.group, steps=steps)

    def kernels(self) -> Kernels:
        """What moves weights in steps of our own."""
        return choose_kernels(self.group.device, self.job.config.engine.kernels)

    @property
    def mark(self) -> str:
        """Digest of the stage's configuration and inputs: what was saved under another one is not gone on from."""
        return digest([config_digest(self.job.config, self.job.spec), inputs_of(self.job.folder, self.job.spec)])

    def checkpoints(self) -> Checkpoints:
        """The phase's own."""
        return Checkpoints(self.job.home, self.name, config_digest=self.mark, group=self.group, fence=fence)

    def fit(self, backend: Backend, feed: Feed, loss: Callable[..., Any], *, steps: int, guard: Guard) -> tuple[TrainState, str]:
        """Run the loop to its end and publish the metrics."""
        engine = self.job.config.engine
        self._checkpoints = self.checkpoints()
        every = min(engine.log_steps, max(1, steps // CURVE_POINTS))  # short phases are drawn too
        telemetry = Telemetry(self.job.home, self.name, every=every, group=self.group)
        try:
            return fit(
                backend,
                feed,
                loss,
                steps=steps,
                save_every=engine.checkpoint_steps,
                background=engine.background_saves,
                guard=guard,
                checkpoints=self._checkpoints,
                telemetry=telemetry,
                group=self.group,
            )
        finally:
            telemetry.close()

    def outcome(
        self, state: TrainState, reason: str, *, parameters: int = 0, coverage: tuple[Coverage, ...] = (), **losses: float
    ) -> PhaseOutcome:
        """How the phase ended, as a record."""
        return PhaseOutcome(
            phase=self.name,
            reason=reason,
            steps=state.step,
            samples=sum(state.seen),
            sample_gradients=state.sample_gradients,
            seconds=round(state.seconds, 3),
            parameters=parameters,
            coverage=coverage,
            losses={**state.measures, **losses},
        )

    def finish(self, state: TrainState, reason: str, **more: Any) -> PhaseOutcome:
        """Publish the `outcome` as `phases/<name>.json` and `close`; the caller has published the weights."""
        return self.conclude(self.outcome(state, reason, **more))

    def conclude(self, outcome: PhaseOutcome) -> PhaseOutcome:
        """Publish an outcome as `phases/<name>.json` and `close`."""
        if self.job.first:
            publish_bytes(self.job.path(self.job.own(f"phases/{self.name}.json")), canonical(outcome))
        self.close()
        log.info("%s: ended after %d steps: %s", self.name, outcome.steps, outcome.reason)
        return outcome

    def close(self) -> None:
        """Remove sharded checkpoints, and end the reading."""
        if self._checkpoints is not None:
            self._checkpoints.clear()
        for feed in self._feeds:
            feed.close()
        for reader in self._readers:
            reader.close()
        rest()  # the first rank still hashes what was published, and no other waits for it

    def outputs(self, *weights: str) -> tuple[str, ...]:
        """The files a finished phase has published, relative to the run folder."""
        own = (f"phases/{self.name}.json", f"metrics/{self.name}.jsonl")
        return (*(self.job.own(uri) for uri in own), *weights)

    def facts(self, outcome: PhaseOutcome) -> dict[str, Any]:
        """What the receipt records of an outcome."""
        return {key: getattr(outcome, key) for key in ("reason", "steps", "sample_gradients", "seconds")}
