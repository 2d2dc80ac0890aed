"""Which shadow runs lend their retrained models: those that attacked these weights, lie beside the run, and are still there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.acts.trainings import other_trainings
from pipeline.chain import stage
from pipeline.config import read_run
from pipeline.decode import canonical
from pipeline.errors import IntegrityError
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Audit
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.runner import Job

CPU = torch.device("cpu")


@pytest.fixture
def job(audited_run: str) -> Iterator[Job]:
    config = read_run(audited_run)
    shadow = Path(f"{audited_run}-like")
    shutil.copytree(audited_run, shadow)
    yield Job(spec=stage("evaluate", config), config=config, folder=audited_run)
    shutil.rmtree(shadow, ignore_errors=True)
    Path(audited_run, "audit", "shadows.json").unlink(missing_ok=True)


def named(job: Job, weights: str, *names: str) -> None:
    Path(job.folder, "audit", "shadows.json").write_bytes(canonical({"weights_sha256": weights, "shadows": names}))


def test_a_shadow_run_lends_its_retrained_model(job: Job, audited: Audit) -> None:
    name = Path(job.folder).name
    named(job, audited.weights_sha256, f"{name}-like", f"{name}-like")
    models, marks = other_trainings(job, audited.weights_sha256, CPU)
    own, digests = load_subjects(job, CPU, only=(REFERENCE,))
    assert list(own) == [REFERENCE] and marks == [digests[REFERENCE]] * 2
    for key, tensor in own[REFERENCE].state_dict().items():
        assert all(torch.equal(tensor, model.state_dict()[key]) for model in models)


def test_without_an_attack_on_these_weights_there_is_none(job: Job, audited: Audit) -> None:
    assert other_trainings(job, audited.weights_sha256, CPU) == ([], [])
    named(job, "0" * 64, f"{Path(job.folder).name}-like")
    assert other_trainings(job, audited.weights_sha256, CPU) == ([], [])


def test_a_file_that_is_no_json_is_named(job: Job, audited: Audit) -> None:
    Path(job.folder, "audit", "shadows.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"shadows\.json: not JSON"):
        other_trainings(job, audited.weights_sha256, CPU)


def test_a_run_that_is_gone_is_named_and_left_out_and_no_name_leads_elsewhere(
    job: Job, audited: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    name = Path(job.folder).name
    named(job, audited.weights_sha256, "gone", f"../../elsewhere/{name}-like")
    models, _ = other_trainings(job, audited.weights_sha256, CPU)
    assert len(models) == 1, "of a path only its last part counts: runs lie side by side"
    assert "left out a shadow run's retrained model" in caplog.text and "gone" in caplog.text
