"""Runs the batches of a schedule for real, but without a process for each stage: one child process for all stages of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from launch.batch_run import BatchRun
from launch.local import prepare_folder, read_report, refuse_failed
from pipeline.acts import forecast, sift, tombstone
from pipeline.chain import chain_for
from pipeline.claim import owning
from pipeline.data.progress import in_lines
from pipeline.errors import GateFailed, StorageError
from pipeline.orders import BatchOrder
from pipeline.schedule_orders import SiftOrder
from pipeline.stages.shard import packed_source
from tests.support.distributed import run_distributed
from tests.support.runs import run_stages

__all__ = ["StagesHere"]


class StagesHere:
    """What `launch.batch_run.Local` does. A run whose batch is named in the file `trouble` beside the runs fails once."""

    def plan(self, run: BatchRun) -> None:
        packed_source(run.config, in_lines(lambda line: None))
        forecast.run(BatchOrder(config=run.config, batch=run.batch))

    def unmatched(self, run: BatchRun) -> tuple[str, ...]:
        return sift.run(SiftOrder(config=run.config, batch=run.batch)).unmatched

    def skip_images(self, run: BatchRun) -> None:
        tombstone.run(BatchOrder(config=run.config, batch=run.batch))

    def carry_on(self, run: BatchRun, note: Callable[[Mapping[str, str]], None]) -> str | None:
        trouble = Path(run.config.output, "trouble")
        if trouble.exists() and trouble.read_text() == run.batch_id:
            trouble.unlink()
            raise StorageError(f"{run.folder}: no space left", "make room")
        with owning(run.folder):
            prepare_folder(run.config, run.batch, run.folder)
            run_distributed(run_stages, 1, run.folder, *[spec.name for spec in chain_for(run.config)])
        try:
            refuse_failed(read_report(run.folder))
        except GateFailed:
            return "verdict"
        return ""
