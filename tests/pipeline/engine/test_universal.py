"""A phase goes on at any number of ranks: weights, moments and step count as they were saved, and equal steps afterwards."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig, quiet_deepspeed
from pipeline.engine.checkpoint import Checkpoints, TrainState
from pipeline.engine.distributed import group
from pipeline.engine.universal import convert
from pipeline.errors import CheckpointError
from tests.pipeline.engine.test_files import Malicious
from tests.support.distributed import run_distributed

KINDS = ("0 fp32", "0 bf16", "1 fp32", "1 bf16", "2 fp32", "2 autocast", "3 fp32", "3 bf16")


class Net(nn.Module):
    """Odd sizes, so that shards end inside tensors; frozen weights, a buffer that moves, and one weight without a gradient."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(11, 11).requires_grad_(False)
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(7, 11), nn.Linear(11, 5)
        self.scale, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.randn(3))
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.frozen(torch.tanh(self.first(inputs.to(self.first.weight.dtype))))
        return self.last(torch.tanh(hidden)).float() * self.scale.float()


def _backend(kind: str, seed: int = 0) -> Backend:
    engine = EngineConfig(zero_stage=int(kind[0]), precision=kind[2:])
    optimizer = OptimizerConfig(learning_rate=1e-2, steps=20, clip=0.5, weight_decay=0.01)
    return Backend(Net(seed).to(group().device), engine=engine, optimizer=optimizer, micro_batch=3, group=group())


def _steps(backend: Backend, first: int, last: int) -> None:
    ranks = group()
    share = 12 // ranks.world_size
    for step in range(first, last):
        inputs = torch.randn(12, 7, generator=torch.Generator().manual_seed(step))
        answers = backend.model(inputs[ranks.rank * share :][:share].to(ranks.device))
        assert not backend.backward((answers - 0.3).square().mean(1).sum() * ranks.world_size / 12)
        backend.step(step)


def _all(backend: Backend) -> dict[str, Tensor]:
    """Weights, buffers, moments and step counts of all ranks."""
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer = backend.engine.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    found = {**backend.weights(), **{f"step {n}": state["step"].cpu().clone() for n, state in enumerate(states)}}
    for moment in ("exp_avg", "exp_avg_sq"):
        if backend.engine.zero_optimization_stage() == 0:
            found[moment] = torch.cat([state[moment].flatten().cpu() for state in states])
            continue
        for name, parameter in backend.engine.module.named_parameters():
            if parameter.requires_grad:
                whole = safe_get_full_optimizer_state(parameter, moment)
                found[f"{name} {moment}"] = whole.cpu().clone().reshape(backend._shape(parameter))
    return found


def _checkpoints(folder: str, kind: str) -> Checkpoints:
    return Checkpoints(f"{folder}/{kind}", "phase", config_digest="a", group=group())


def undisturbed(folder: str) -> dict[str, dict[int, dict[str, Tensor]]]:
    """What is at steps 3, 5 and 7."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        backend = _backend(kind)
        for first, last in ((0, 3), (3, 5), (5, 7)):
            _steps(backend, first, last)
            found[kind][last] = _all(backend)
            if last == 3 and group().world_size > 1:
                _checkpoints(folder, kind).save(backend, TrainState(step=3))
                break
        backend.close()
    return found


def go_on(folder: str, step: int) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What is there when the run goes on at `step`, and two steps later, where it is saved."""
    found = {}
    for kind in KINDS:
        backend, points = _backend(kind, seed=1), _checkpoints(folder, kind)
        assert points.restore(backend) == TrainState(step=step)
        restored = _all(backend)
        _steps(backend, step, step + 2)
        points.save(backend, TrainState(step=step + 2))
        found[kind] = restored, _all(backend)
        backend.close()
    return found


def _far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.distributed
@pytest.mark.slow
def test_from_two_ranks_to_one_to_three_a_run_goes_on_as_if_undisturbed() -> None:
    with tempfile.TemporaryDirectory(suffix=" a+b[1]") as folder:
        two = run_distributed(undisturbed, 2, folder)[0]
        (alone,) = run_distributed(undisturbed, 1, "")
        (one,) = run_distributed(go_on, 1, folder, 3)
        three, *others = run_distributed(go_on, 3, folder, 5)
        left = sorted(path.name for path in Path(folder, "3 fp32").rglob("*") if path.is_file())
    for kind in KINDS:
        assert _far(one[kind][0], two[kind][3]) == 0, f"{kind}: from two to one"
        assert _far(three[kind][0], one[kind][1]) == 0, f"{kind}: from one to three"
        assert all(_far(three[kind][1], other[kind][1]) == 0 for other in others), f"{kind}: ranks differ"
        # Rounded gradients of one and of three ranks differ in the eighth bit of bf16; Adam's steps are 0.01 long.
        limit = 1e-6 if "fp32" in kind else 0.004
        assert _far(one[kind][1], alone[kind][5]) < limit, f"{kind}: after going on alone"
        assert _far(three[kind][1], alone[kind][7]) < limit, f"{kind}: after going on as three"
        assert _far(alone[kind][7], alone[kind][5]) > 0.005, f"{kind}: nothing moved"
        assert three[kind][1]["step 0"] == alone[kind][7]["step 0"] and three[kind][1]["calls"].tolist() == [7.0] * 3
    shards = [f"zero_pp_rank_{rank}_mp_rank_00_{what}_states.pt" for rank in range(3) for what in ("model", "optim")]
    assert left == sorted([*shards, "state.json"])


def test_a_checkpoint_that_would_run_code_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    quiet_deepspeed(EngineConfig())
    mark, (folder, target) = tmp_path / "mark", (tmp_path / "step", tmp_path / "target")
    for path in (folder, target):
        path.mkdir()
    files = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for bad in files:
        for file in files:
            states: dict[str, Any] = {"module": {}, "param_shapes": [{}], "optimizer_state_dict": {"zero_stage": 1}}
            torch.save({**states, "extra": Malicious(mark)} if file == bad else states, folder / file)
        with pytest.raises(CheckpointError, match=r"holds eval"):
            convert(str(folder), files, str(target))
        assert not mark.exists(), bad
