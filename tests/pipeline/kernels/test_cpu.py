"""The C++ kernels give the bits of the reference, at any cut, alignment and number of threads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pipeline.kernels import build
from pipeline.kernels.build import BuildError, built
from pipeline.kernels.counter import Draw, normal
from pipeline.kernels.cpu import Cpu
from pipeline.kernels.reference import PIECE, Reference

BLOCK, CHUNK = 1 << 14, 256
DRAWS = [None, Draw("philox", bytes(range(8)), 3), Draw("chacha20", bytes(range(32)), 3)]
COUNTS = st.one_of(
    st.integers(0, 40),
    st.sampled_from([CHUNK, BLOCK, PIECE]).flatmap(lambda edge: st.integers(edge - 2, edge + 2)),
    st.just(70_001),
)
STARTS = st.one_of(st.integers(0, 600), st.just((1 << 36) - 100), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1]))


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    try:
        return Cpu(built())
    except BuildError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="module")
def portable(cpu: Cpu, tmp_path_factory: pytest.TempPathFactory) -> Cpu:
    """Compiled for no processor in particular."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "NATIVE", ())
        return Cpu(built(str(tmp_path_factory.mktemp("portable"))))


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def vectors(count: int, seed: int, low: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, gradient, anchor, copy; not aligned to anything."""
    generator = torch.Generator().manual_seed(seed)
    weights, gradient, anchor = (torch.randn(count + 1, generator=generator)[1:] for _ in range(3))
    return weights, gradient.bfloat16() if low else gradient, anchor, torch.zeros(count + 1, dtype=torch.bfloat16)[1:]


@given(
    COUNTS, STARTS, st.sampled_from(DRAWS), st.sampled_from(["fp32", "bf16", "none"]), st.booleans(), st.sampled_from([1.0, 0.9])
)
@settings(max_examples=40, deadline=None)
def test_each_pass_is_the_reference_bit_for_bit(
    cpu: Cpu, count: int, start: int, draw: Draw | None, kind: str, anchored: bool, rho: float
) -> None:
    answers = []
    for kernels in (Reference(), cpu):
        weights, gradient, anchor, copy = vectors(count, seed=count, low=kind == "bf16")
        centre = anchor if anchored else None
        options: Any = {"start": start, "anchor": centre, "copy": copy}
        length = kernels.square(gradient, start=start)
        given = None if kind == "none" else gradient
        sums = kernels.move(weights, given, rho=rho, pull=-0.013, scale=0.07, draw=draw, **options)
        moved, first = weights.clone(), copy.clone()
        apart = kernels.project(weights, factor=0.3, **options)
        drawn, second = weights.clone(), copy.clone()
        copy.zero_()
        stays = kernels.project(weights, **options)
        assert torch.equal(copy, weights.bfloat16()) and torch.equal(weights, drawn)
        assert torch.equal(second, copy)
        alone = {**options, "copy": None}
        lengths = [length, *sums, apart, stays, kernels.project(weights, **alone), kernels.project(weights, factor=0.5, **alone)]
        answers.append(([moved, first, drawn, second, weights], lengths))
    (theirs, their_sums), (ours, our_sums) = answers
    for one, other in zip(theirs, ours, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(their_sums, our_sums, strict=True):
        assert float(other) == pytest.approx(float(one), rel=1e-11, abs=0)


@pytest.mark.parametrize("draw", DRAWS[1:], ids=lambda draw: draw.cipher)
def test_noise_is_that_of_the_reference(cpu: Cpu, draw: Draw) -> None:
    for start, count in ((0, 20_000), (37, 999), ((1 << 40) - 100, 300)):
        assert torch.equal(cpu.normal(draw, start, count), normal(draw, start, count))


@pytest.mark.parametrize("draw", DRAWS[1:], ids=lambda draw: draw.cipher)
def test_two_million_numbers_are_normal_to_the_tail(cpu: Cpu, draw: Draw) -> None:
    count = 2_000_000
    found = cpu.normal(draw, 0, count).double()
    uniform = torch.special.ndtr(found)
    bins = torch.histc(uniform, 1000, 0.0, 1.0)
    assert stats.chisquare(bins.numpy()).pvalue > 1e-3
    for edge in (3.0, 4.0, 4.5):
        beyond = stats.norm.sf(edge) * count
        for side in (found, -found):
            assert abs(int((side > edge).sum()) - beyond) < 5 * beyond**0.5
    pairs = found.view(-1, 2, 16) if draw.cipher == "philox" else found.view(-1, 1, 2).transpose(1, 2)
    assert stats.kstest(pairs[:50_000].square().sum(1).flatten()[:50_000].numpy(), "chi2", args=(2,)).pvalue > 1e-3


@pytest.mark.parametrize("draw", DRAWS[1:], ids=lambda draw: draw.cipher)
def test_noise_is_made_by_vectors(cpu: Cpu, threads: Any, draw: Draw) -> None:
    """Where the compiler stops to see vectors, a number costs as much as 60 to 100 of a sum's places; by vectors, 3 to 10."""
    threads(1)
    count, vector = 1 << 18, torch.randn(1 << 18)

    def seconds(act: Callable[[], object]) -> float:
        begun = time.perf_counter()
        act()
        return time.perf_counter() - begun

    cost = min(seconds(lambda: cpu.normal(draw, 0, count)) for _ in range(7))
    base = min(seconds(lambda: cpu.square(vector, start=0)) for _ in range(7))
    assert cost < 40 * base


@pytest.mark.parametrize("kind", ["fp32", "bf16", "none"])
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.cipher if draw else "none")
def test_a_library_for_any_processor_gives_the_same_bits(cpu: Cpu, portable: Cpu, draw: Draw | None, kind: str) -> None:
    """By hand or by the compiler, with vectors of sixteen or four: numbers, weights, copies and sums."""
    found = []
    for kernels in (cpu, portable):
        weights, gradient, anchor, copy = vectors(3 * BLOCK + 1234, seed=3, low=kind == "bf16")
        options: Any = {"start": 77, "anchor": anchor, "copy": copy}
        given = None if kind == "none" else gradient
        sums = [kernels.square(gradient, start=77)[None]]
        sums.append(kernels.move(weights, given, rho=0.9, pull=0.1, scale=0.2, draw=draw, **options))
        moved, first = weights.clone(), copy.clone()
        sums.append(kernels.project(weights, factor=0.3, **options)[None])
        sums.append(kernels.move(weights, given, start=(1 << 35) - 100, pull=0.1, scale=0.2, draw=draw))
        numbers = kernels.normal(draw, (1 << 40) - 100, 70_000) if draw else torch.zeros(1)
        found.append([moved, first, weights, copy, numbers, torch.cat(sums)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.cipher if draw else "none")
def test_a_distance_that_nobody_asks_for_changes_nothing_else(cpu: Cpu, draw: Draw | None) -> None:
    found = []
    for kernels, apart in ((cpu, True), (cpu, False), (Reference(), False)):
        weights, gradient, anchor, copy = vectors(BLOCK + 99, seed=4)
        sums = kernels.move(weights, gradient, start=5, anchor=anchor, copy=copy, pull=0.1, scale=0.2, draw=draw, apart=apart)
        assert bool(sums[2].isfinite()) == apart
        found.append((weights, copy, sums[:2]))
    assert all(torch.equal(one, other) for one, other in zip(*found[:2], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(found[0][:2], found[2][:2], strict=True))


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.cipher if draw else "none")
def test_threads_and_parts_change_no_bit(cpu: Cpu, threads: Any, draw: Draw | None) -> None:
    count, start, found, sums = 40 * BLOCK + 123, 77, [], []
    for number in (1, 2, 5):
        threads(number)
        weights, gradient, anchor, _ = vectors(count, seed=1)
        sums.append(cpu.move(weights, gradient, start=start, anchor=anchor, rho=0.9, pull=0.1, scale=0.2, draw=draw))
        sums[-1] = torch.cat([sums[-1], cpu.square(gradient, start=start)[None]])
        found.append(weights)
    weights, gradient, anchor, _ = vectors(count, seed=1)
    for part in torch.arange(count).tensor_split(4):
        cut = slice(int(part[0]), int(part[-1]) + 1)
        own = {"start": start + cut.start, "anchor": anchor[cut]}
        cpu.move(weights[cut], gradient[cut], rho=0.9, pull=0.1, scale=0.2, draw=draw, **own)  # type: ignore[arg-type]
    assert all(torch.equal(found[0], other) for other in (*found[1:], weights))
    assert all(torch.equal(sums[0], other) for other in sums[1:])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("low", [False, True])
def test_what_is_not_finite_shows_in_the_length(cpu: Cpu, bad: float, low: bool) -> None:
    for place in (0, 17, 5 * BLOCK - 1):
        _, gradient, _, _ = vectors(5 * BLOCK, seed=0, low=low)
        assert math.isfinite(cpu.square(gradient, start=3))
        gradient[place] = bad
        assert not math.isfinite(cpu.square(gradient, start=3)) and not math.isfinite(Reference().square(gradient, start=3))


def test_a_copy_rounds_as_torch_does(cpu: Cpu) -> None:
    values = torch.cat(
        [torch.randn(5000) * 10.0 ** torch.randint(-38, 38, (5000,)), torch.tensor([math.inf, math.nan, 0.0, -0.0])]
    )
    ties = (torch.arange(5000, dtype=torch.int32) << 15).view(torch.float32)
    for weights in (values, ties):
        copy = torch.zeros(len(weights), dtype=torch.bfloat16)
        cpu.move(weights, None, start=0, copy=copy)
        number = ~weights.isnan()  # torch itself has two forms of what is none
        assert torch.equal(copy.isnan(), ~number)
        assert torch.equal(copy[number].view(torch.int16), weights[number].bfloat16().view(torch.int16))


def test_other_tensors_are_refused(cpu: Cpu) -> None:
    for wrong in (torch.zeros(4, dtype=torch.float16), torch.zeros(4, 2)[:, 0]):
        with pytest.raises(ValueError, match="contiguous fp32"):
            cpu.square(wrong, start=0)
