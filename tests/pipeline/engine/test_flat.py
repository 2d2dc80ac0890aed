"""Steps in blocks that stay: DeepSpeed's own steps are the law."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import EngineConfig
from pipeline.engine import backend as backends
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.distributed import group
from pipeline.engine.files import SHARD, plain_loading
from tests.pipeline.engine.test_fused import BALL, armed, compare, grid
from tests.pipeline.engine.test_noisy import take
from tests.support.distributed import run_distributed
from tests.support.taking import taken_by

CASES = [(1, "fp32"), (1, "bf16"), (2, "autocast"), (2, "fp32")]


class _Uneven(nn.Module):
    """Sizes that no number of ranks divides; a weight that is used twice, one that some steps do not use, and one that is
    computed anew on the way back, so many times: DeepSpeed's stage 2 refuses a second."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times
        self.twice, self.seldom, self.anew, self.last = (
            nn.Linear(7, 7),
            nn.Linear(7, 7, bias=False),
            nn.Linear(7, 7),
            nn.Linear(7, 3),
        )
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def forward(self, images: Tensor, seldom: bool) -> Tensor:
        """Squared length, fp32 []."""
        hidden = self.twice(torch.tanh(self.twice(images)))
        if seldom:
            hidden = hidden + self.seldom(images)
        for _ in range(self._times):
            hidden = checkpoint(self.anew, torch.tanh(hidden), use_reentrant=True)
        answer: Tensor = self.frozen(self.last(hidden)).float().square().sum()
        return answer


class _OwnSteps(backends.FlatSteps):
    def __init__(self, *args: object) -> None:
        self.bad = torch.zeros(())  # DeepSpeed's steps stay


@contextlib.contextmanager
def _steps_of(deepspeed: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if deepspeed:
            patch.setattr(backends, "FlatSteps", _OwnSteps)
        yield


def _backend(zero: int, precision: str, clip: float) -> Backend:
    torch.manual_seed(0)
    return Backend(
        _Uneven(times=2 if zero == 1 else 1),
        engine=EngineConfig(zero_stage=zero, precision=precision),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(learning_rate=1e-2, steps=8, clip=clip),
        micro_batch=2,
        group=group(),
    )


def _images(step: int, dtype: torch.dtype) -> Tensor:
    ranks = group()
    made = torch.randn(6, 7, generator=torch.Generator().manual_seed(step))
    share = 6 // ranks.world_size
    return made[ranks.rank * share :][:share].to(dtype).requires_grad_()


def _moved(deepspeed: bool) -> dict[tuple[int, str], dict[str, Tensor]]:
    found = {}
    with _steps_of(deepspeed):
        for zero, precision in CASES:
            backend = _backend(zero, precision, clip=0.5)
            for step in range(5):
                loss = backend.model(_images(step, torch.bfloat16 if precision == "bf16" else torch.float32), step % 2 == 0)
                assert not backend.backward(loss * group().world_size / 6)
                backend.step(step)
            found[zero, precision] = backend.weights()
            backend.close()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_weights_go_where_deepspeeds_own_steps_lead(world_size: int) -> None:
    theirs, *others = run_distributed(_moved, world_size, True)
    for ours in run_distributed(_moved, world_size, False):
        for case, weights in ours.items():
            # In bf16 a sum over ranks is rounded in another order, and Adam makes a whole step of the smallest gradient.
            near = {"rtol": 0.0, "atol": 2e-2 if case[1] == "bf16" and world_size == 3 else 1e-6}
            for name, weight in weights.items():
                torch.testing.assert_close(weight, theirs[case][name], **near, msg=lambda text, at=(case, name): f"{at}: {text}")
    assert all(
        torch.equal(weight, theirs[case][name]) for other in others for case in CASES for name, weight in other[case].items()
    )


def _own_rules(cases: list[tuple[int, str, float | None]]) -> list[object]:
    with _steps_of(deepspeed=True):
        return grid(cases)


@pytest.mark.distributed
def test_where_deepspeeds_steps_stay_as_on_a_gpu_our_own_rules_lead_to_the_same_weights() -> None:
    cases = [(stage, "fp32", ball) for stage in (1, 2) for ball in (None, BALL)]
    compare(cases, run_distributed(_own_rules, 2, cases))


def _own_steps(cases: list[tuple[int, str, float | None]]) -> list[tuple[list[bool], int, int]]:
    found = []
    for stage, precision, ball in cases:
        backend = armed(stage, precision, ball)
        rounded, size = [], 4 * sum(parameter.numel() for parameter in backend.model.parameters())
        for step in range(3):
            backend.step = partial(_noted, backend, type(backend).step, held := [])  # type: ignore[method-assign]
            take(backend, step, -1.0)
            masters = backend.weights()
            model = dict(backend.engine.module.named_parameters())
            rounded.append(all(torch.equal(model[name], weight.to(model[name].dtype)) for name, weight in masters.items()))
        found.append((rounded, held[0], size))
        backend.close()
    return found


def _noted(backend: Backend, step: Callable[[Backend, int], None], held: list[int], number: int) -> None:
    held.append(taken_by(partial(step, backend, number)))


@pytest.mark.distributed
def test_our_own_steps_round_the_weights_and_take_no_memory() -> None:
    cases = [(stage, precision, ball) for stage in (1, 2) for precision in ("fp32", "bf16") for ball in (None, BALL)]
    for found in run_distributed(_own_steps, 2, cases):
        for case, (rounded, held, size) in zip(cases, found, strict=True):
            assert rounded == [True] * 3, f"{case}: weights of the model are not the rounded masters"
            assert held < 0.1 * size, f"{case}: {held} bytes of {size}"


def _saved_at_once(folder: str) -> list[bool]:
    found = []
    for zero, precision in CASES:
        place = f"{folder}/{zero}{precision}"
        backend, dtype = _backend(zero, precision, clip=1.0), torch.bfloat16 if precision == "bf16" else torch.float32
        backend.backward(backend.model(_images(0, dtype), True))
        backend.step(0)
        own = [path for path in backend.save(place, copy=False)().own if SHARD in path]
        group().barrier()
        with plain_loading(place):
            masters = torch.load(f"{place}/{own[0]}")["optimizer_state_dict"]["single_partition_of_fp32_groups"]
        found += [item.untyped_storage().nbytes() == item.numel() * item.element_size() for item in masters]
        again = _backend(zero, precision, clip=1.0)
        again.load(place)
        before, after = backend.weights(), again.weights()
        found += [torch.equal(weight, after[name]) for name, weight in before.items()]
        backend.close()
        again.close()
    return found


@pytest.mark.distributed
def test_what_is_saved_at_once_holds_no_rank_but_its_own_and_comes_back(tmp_path: Path) -> None:
    for found in run_distributed(_saved_at_once, 2, str(tmp_path)):
        assert len(found) > 2 * len(CASES) and all(found)


def _held() -> list[tuple[bool, float, float, float]]:
    found = []
    for zero, precision in CASES:
        backend = _backend(zero, precision, clip=1.0)
        optimizer = backend.engine.optimizer
        mine = optimizer.parallel_partitioned_bit16_groups[0][group().rank]
        same = optimizer.single_partition_of_fp32_groups[0].data_ptr() == mine.data_ptr()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        good = float(backend.backward(backend.model(_images(0, dtype), True)))
        held = float(sum(parameter.grad is not None for parameter in backend.engine.module.parameters()))
        images = _images(1, dtype).detach()
        images[0, 0] = float("nan") if group().rank == 0 else 0.0
        bad = float(backend.backward(backend.model(images.requires_grad_(), True)))
        before = backend.weights()
        with pytest.raises(FloatingPointError, match="no weight was moved"):
            backend.step(0)
        assert all(torch.equal(weight, before[name]) for name, weight in backend.weights().items())
        found.append((same, good, held, bad))
        backend.close()
    return found


@pytest.mark.distributed
def test_one_copy_of_weights_no_gradient_beside_the_block_and_faults_stay_with_their_rank() -> None:
    first, second = run_distributed(_held, 2)
    for (_, precision), mine, other in zip(CASES, first, second, strict=True):
        assert mine[0] == other[0] == (precision != "bf16")
        assert mine[1:3] == other[1:3] == (0.0, 0.0)
        assert mine[3] == 1 and other[3] == 0
