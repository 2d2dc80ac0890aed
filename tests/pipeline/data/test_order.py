"""Laws of the order: every sample once a pass, on any number of ranks, found at any step alone."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import StreamConfig
from pipeline.data.order import Order
from pipeline.errors import ConfigError

SHARDS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5000)), min_size=1, max_size=12).filter(
    lambda shards: any(count for count, _ in shards)
)
CONFIGS = st.builds(StreamConfig, lanes=st.integers(1, 9), block_bytes=st.integers(1, 9000), window=st.integers(1, 4))


def make_order(shards: list[tuple[int, int]], config: StreamConfig, batch_size: int = 4, seed: int = 1) -> Order:
    counts, sizes = zip(*shards, strict=True)
    return Order(counts, sizes, batch_size=batch_size, seed=seed, config=config)


def whole(order: Order, number: int) -> list[int]:
    """All positions of a pass in the order of places."""
    steps = range(number * order.steps_per_pass, (number + 1) * order.steps_per_pass)
    return np.concatenate([order.batch(step)[1] for step in steps]).tolist()


@settings(max_examples=150, deadline=None)
@given(shards=SHARDS, config=CONFIGS, batch_size=st.integers(1, 40), number=st.integers(0, 3))
def test_a_pass_holds_every_sample_once(
    shards: list[tuple[int, int]], config: StreamConfig, batch_size: int, number: int
) -> None:
    order = make_order(shards, config, batch_size)
    total = sum(count for count, _ in shards)
    assert sorted(whole(order, number)) == list(range(total))
    assert order.steps_per_pass == -(-total // min(batch_size, total))
    spans = [order.places(step) for step in range(2 * order.steps_per_pass)]
    assert [place for span in spans for place in range(*span)] == list(range(2 * total))


@settings(max_examples=150, deadline=None)
@given(shards=SHARDS, config=CONFIGS, batch_size=st.integers(1, 40), world_size=st.integers(1, 5), step=st.integers(0, 60))
def test_ranks_share_each_global_batch_in_equal_shapes(
    shards: list[tuple[int, int]], config: StreamConfig, batch_size: int, world_size: int, step: int
) -> None:
    order = make_order(shards, config, batch_size)
    places, positions = order.batch(step)
    assert places.tolist() == list(range(*order.places(step)))
    parts = [order.batch(step, rank, world_size) for rank in range(world_size)]
    joined = sorted(zip(*(np.concatenate(column).tolist() for column in zip(*parts, strict=True)), strict=True))
    assert joined == list(zip(places.tolist(), positions.tolist(), strict=True)), "the same batch at every world size"
    assert order.share(step, world_size) == max(len(part[0]) for part in parts)
    if world_size <= config.lanes:
        assert order.share(step, world_size) <= order.largest_share(world_size)
    else:
        with pytest.raises(ConfigError, match=r"stream\.lanes"):
            order.largest_share(world_size)


@settings(max_examples=100, deadline=None)
@given(shards=SHARDS, config=CONFIGS, batch_size=st.integers(1, 40), step=st.integers(0, 60), world_size=st.integers(1, 3))
def test_windows_from_any_step_are_those_of_the_whole_walk(
    shards: list[tuple[int, int]], config: StreamConfig, batch_size: int, step: int, world_size: int
) -> None:
    order = make_order(shards, config, batch_size)
    start, rank = order.places(step)[0], step % world_size
    end = start + 2 * order.samples
    walked = [w for w in itertools.takewhile(lambda w: w.first < end, order.windows(0, rank, world_size)) if w.stop > start]
    jumped = list(itertools.takewhile(lambda w: w.first < end, order.windows(step, rank, world_size)))
    assert [w.first for w in jumped] == sorted(w.first for w in jumped), "in the order of need"
    assert {(w.first, *w.positions.tolist()) for w in walked} == {(w.first, *w.positions.tolist()) for w in jumped}
    counts = np.cumsum([0, *(count for count, _ in shards)])
    for window in jumped:
        assert len(window.pieces) <= config.window
        for home, (low, high) in enumerate(window.pieces):
            assert sorted(window.positions[window.homes == home].tolist()) == list(range(low, high))
            assert np.searchsorted(counts, low, "right") == np.searchsorted(counts, high - 1, "right"), "within one shard"


def test_passes_and_seeds_differ_and_blocks_are_mixed() -> None:
    shards = [(300, 1 << 20)] * 7
    order = make_order(shards, StreamConfig(lanes=8, block_bytes=1 << 17))
    first, second = whole(order, 0), whole(order, 1)
    assert first != second
    assert whole(make_order(shards, StreamConfig(lanes=8, block_bytes=1 << 17), seed=2), 0) != first
    assert whole(make_order(shards, StreamConfig(lanes=8, block_bytes=1 << 17)), 1) == second
    batches = np.array(first)[: 2100 // 64 * 64].reshape(-1, 64) // 300
    assert np.mean([len(np.unique(batch)) for batch in batches]) > 5, "a batch draws from most of the seven shards"


def test_no_two_windows_are_shuffled_alike() -> None:
    order = make_order([(1024, 1)] * 4, StreamConfig(lanes=8, block_bytes=1), batch_size=64)
    shuffles = [
        tuple(np.argsort(window.homes * 10_000 + window.positions).tolist())
        for window in itertools.takewhile(lambda window: window.first < 3 * 4096, order.windows(0))
    ]
    assert len(shuffles) >= 24 and max(map(len, shuffles)) > 100
    assert len(set(shuffles)) == len(shuffles)


def test_a_step_of_200_million_samples_is_found_at_once() -> None:
    order = Order([1000] * 200_000, [110 << 20] * 200_000, batch_size=4096, seed=1, config=StreamConfig())
    started = time.monotonic()
    places, positions = order.batch(order.steps_per_pass + 40_000, 1, 4)
    assert len(places) == len(set(positions.tolist())) == 1024
    assert time.monotonic() - started < 10, "no replay"
