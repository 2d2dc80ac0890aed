"""A node's part in a stage, and a node alone that leads: the chain, its claim, attempts and their ends; workers are fake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch import nodes, torchrun
from launch.cluster import read_cluster
from launch.local import prepare_folder
from launch.nodes import meeting_of, node_resources, run_node
from launch.seat import Seat
from launch.spec import StageJob, chain_of_jobs
from launch.worker import Asked, WorkerError
from pipeline.chain import CHAIN
from pipeline.claim import VARIABLE, Watcher
from pipeline.config import RunConfig, run_folder
from pipeline.decode import canonical
from pipeline.errors import ConfigError, DataError, Preempted
from pipeline.records import RequestBatch
from pipeline.storage import join, publish_bytes
from tests.launch.conftest import fake_job

Small = tuple[RunConfig, RequestBatch]
ALL = tuple(spec.name for spec in CHAIN if spec.name != "certify")
ALONE = Seat(rank=0, nodes=1, address="127.0.0.1", interface="lo", attempt="")
TWO = Seat(rank=0, nodes=2, address="127.0.0.1", interface="lo", attempt="17-0")


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> list[torchrun.Meeting]:
    """The meetings whose agents were started; the agents are fake."""
    met: list[torchrun.Meeting] = []

    def agent(spec: Any, folder: str, machine: Any, meeting: torchrun.Meeting, *, extra: Any) -> torchrun.JobSpec:
        met.append(meeting)
        return fake_job(spec.name, folder)

    monkeypatch.setattr(torchrun, "agent_job", agent)
    monkeypatch.setattr(nodes, "WORD_SECONDS", 0.2)
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.05)
    return met


def go(small: Small, seat: Seat = ALONE, **fields: Any) -> tuple[tuple[str, ...], list[str]]:
    config, batch = small
    folder, said = run_folder(config, batch), list[str]()
    cluster = read_cluster("", {"nodes": seat.nodes, "lease_seconds": 1.0, "restarts": 2, **fields})
    return run_node(config, folder, cluster, seat, say=said.append, prepare=lambda: prepare_folder(config, batch, folder)), said


def job(**fields: Any) -> StageJob:
    given = {"stage": "retain", "title": "", "needs": (), "nodes": 3, "min_nodes": 2, "ranks_per_node": 4, "gpus_per_node": 0}
    return StageJob(**{**given, "cpus_per_node": 0, "threads": 1, "memory_gib": 0, "minutes": 60, **fields})


def test_a_stage_takes_the_leader_and_the_lowest_others() -> None:
    cluster = read_cluster("", {"nodes": 5, "min_nodes": 2})

    def places(leader: int, **fields: Any) -> list[int | None]:
        seats = [Seat(rank=rank, nodes=5, address="x", interface="", attempt="") for rank in range(5)]
        found = [meeting_of(job(**fields), cluster, s, leader=leader, endpoint="e:1", name="n") for s in seats]
        return [meeting and meeting.rank for meeting in found]

    assert places(0) == [0, 1, 2, None, None]
    assert places(3) == [1, 2, None, 0, None]
    assert places(3, nodes=1, min_nodes=1) == [None, None, None, 0, None]
    assert places(0, ranks_per_node=0) == [None] * 5


def test_a_node_with_fewer_gpus_than_the_cluster_says_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda env: 2)
    with pytest.raises(ConfigError, match="this node has 2 GPUs, stage retain was to get 8"):
        node_resources(job(gpus_per_node=8, ranks_per_node=2))
    assert node_resources(job(gpus_per_node=2, ranks_per_node=2)).gpus == 2
    assert node_resources(job(ranks_per_node=2)).gpus == 0


def test_a_node_alone_leads_the_whole_chain(small: Small, agents: list[torchrun.Meeting]) -> None:
    ran, said = go(small)
    assert ran == ALL
    assert len(agents) == 6
    assert len({meeting.name for meeting in agents}) == 6, "no meeting is used twice"
    assert any(line.startswith("release: done in") for line in said)
    assert Watcher(run_folder(*small)).look() is None
    assert go(small) == ((), [])


def test_its_workers_work_under_its_claim(small: Small, agents: list[torchrun.Meeting], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = nodes.run_worker
    monkeypatch.setattr(nodes, "run_worker", lambda job, **more: (seen.append(job.env[VARIABLE]), real(job, **more)))
    go(small)
    assert len(set(seen)) == 1
    assert seen[0].startswith(join(run_folder(*small), "claims", "000001.json#"))


def test_a_stage_that_lost_a_rank_is_tried_again_and_then_given_up(
    small: Small, agents: list[torchrun.Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def work(job: Any, *, what: str, **more: Any) -> None:
        tries.append(what)
        raise Preempted(f"{what}: a rank was killed", "again")

    monkeypatch.setattr(nodes, "run_worker", work)
    with pytest.raises(Preempted, match="a rank was killed"):
        go(small)
    assert tries == ["stage shard"] * 3


def test_asked_to_leave_it_leaves_at_once_and_says_so_to_the_others(
    small: Small, agents: list[torchrun.Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(job: Any, *, what: str, **more: Any) -> None:
        raise Asked(f"{what}: stopped by SIGTERM", "again")

    monkeypatch.setattr(nodes, "run_worker", work)
    with pytest.raises(Asked):
        go(small)
    claim = Watcher(run_folder(*small)).look()
    assert claim is not None
    assert claim.ended["kind"] == "Preempted"


def test_another_node_s_word_is_the_cause(small: Small, agents: list[torchrun.Meeting], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = run_folder(*small), nodes.run_worker

    def work(job: Any, *, what: str, **more: Any) -> None:
        if what != "stage train":
            return real(job, what=what, **more)
        facts = {"kind": "DataError", "message": "shard 7: truncated", "cure": "restore it", "node": "1", "output": ""}
        publish_bytes(join(folder, "claims", f"fault-{agents[-1].name}-1.json"), canonical(facts))
        raise WorkerError("stage train: ended with code 1", "connection closed by peer")

    monkeypatch.setattr(nodes, "run_worker", work)
    with pytest.raises(DataError, match="shard 7: truncated"):
        go(small, TWO)


def test_a_follower_ends_with_the_leader_s_error(small: Small, agents: list[torchrun.Meeting]) -> None:
    folder = run_folder(*small)
    Path(folder, "claims").mkdir(parents=True)
    seat = Seat(rank=1, nodes=2, address="127.0.0.1", interface="lo", attempt="")
    living = {"token": "t", "process": "elsewhere/b/n/1/2", "beat": 1, "notes": {}, "ended": {}}

    class Leading(Watcher):
        looks = 0

        def look(self) -> Any:
            Leading.looks += 1
            if Leading.looks == 4:
                ended = {"kind": "DataError", "message": "shard 7: truncated", "cure": "restore it"}
                Path(folder, "claims", "000001.json").write_text(json.dumps({**living, "beat": 2, "ended": ended}))
            return super().look()

    Path(folder, "claims", "000001.json").write_text(json.dumps(living))
    monkey = pytest.MonkeyPatch()
    monkey.setattr(nodes, "Watcher", Leading)
    try:
        with pytest.raises(DataError, match="shard 7: truncated"):
            go(small, seat)
    finally:
        monkey.undo()
    assert not agents


def test_resources_of_every_stage_can_be_met_here(small: Small) -> None:
    for item in chain_of_jobs(small[0], read_cluster("two_nodes")):
        assert node_resources(item).ranks >= 1
