"""The probe of this machine, by one and by two ranks as torchrun starts them."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from launch import torchrun
from launch.worker import run_worker
from pipeline.acts import probe
from pipeline.acts.probe import MESSAGES
from pipeline.chain import CHAIN
from pipeline.config import LaunchConfig, read_run
from pipeline.decode import canonical, decode
from pipeline.orders import Machine, ProbeOrder
from tests.support.distributed import run_distributed
from tests.support.runs import prepare


def given(folder: Path, zero: int) -> ProbeOrder:
    (folder / "scratch").mkdir()
    config = read_run(prepare(folder, engine={"zero_stage": zero}))
    return ProbeOrder(
        config=config, samples=(4, 8), look=24, sample_bytes=2000, folder=str(folder / "scratch"), started=time.time()
    )


def alone(order: ProbeOrder) -> Machine:
    found = probe.run(order)
    assert isinstance(found, Machine)
    return found


def launched(order: ProbeOrder, file: Path, ranks: int) -> Machine:
    """As the command does it."""
    file.write_bytes(canonical(order))
    spec = dataclasses.replace(CHAIN[1], name="probe")
    run_worker(torchrun.stage_job(spec, str(file), torchrun.resources(LaunchConfig(ranks=ranks))), what="probe", to_stderr=True)
    return decode(Machine, json.loads((file.parent / "answer.json").read_bytes()), where="answer")


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "zero"), [(1, 0), (2, 2)])
def test_a_probe_takes_all_times(tmp_path: Path, ranks: int, zero: int) -> None:
    order = given(tmp_path, zero)
    machine = run_distributed(alone, 1, order)[0] if ranks == 1 else launched(order, tmp_path / "order.json", ranks)
    assert (machine.ranks, set(machine.step_seconds), set(machine.peak_bytes)) == (ranks, {"4", "8"}, {"4", "8"})
    assert (machine.look, machine.look_bytes > 0) == (24, True)
    assert 0 < min(machine.step_seconds.values()) < 30
    assert 0 < machine.update_seconds < 30
    assert machine.start_seconds > (0.5 if ranks > 1 else 0), "the time to load all is in it"
    assert [size for size, _ in machine.network] == (list(MESSAGES) if ranks > 1 else [])
    assert machine.decode_seconds is not None
    assert 0 < machine.decode_seconds < 1
    assert machine.checkpoint_bytes > 0
    assert machine.peak_bytes["8"] >= machine.peak_bytes["4"] > machine.process_bytes > 50_000_000
    assert machine.process_bytes > machine.mapped_bytes > 10_000_000
    assert not list((tmp_path / "scratch").rglob("*.pt"))
