"""The order of samples: a pure function of seed, pass, stream settings and the split's shards; no I/O.

Shards are cut in blocks of consecutive samples, the blocks are shuffled, and their sequence is cut in lanes of equal
length that are read side by side. In a lane a few blocks at a time (a window) are shuffled together. Place i of a pass
is in lane i % L, at place i // L of the lane, so a batch draws from all lanes. Ranks share lanes, and nothing else
depends on them: the order is the same at every world size, and any step is found without replaying those before it.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.config import StreamConfig
from pipeline.errors import ConfigError

__all__ = ["Order", "Window"]

BLOCKS_AT_LEAST = 256
"""Smaller splits are cut in smaller blocks, so that they mix as well as large ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Samples of one lane that are shuffled together.

    first: place in the whole stream of its first sample; the next one's is `stride` farther · pieces: (first position, past
    the last) of each run of consecutive samples · positions: int64 [n], in the order of reading · homes: int64 [n], the
    piece of each.
    """

    first: int
    stride: int
    pieces: tuple[tuple[int, int], ...]
    positions: np.ndarray
    homes: np.ndarray

    @property
    def stop(self) -> int:
        """The place past that of its last sample."""
        return self.first + self.stride * (len(self.positions) - 1) + 1

    def between(self, start: int, stop: int) -> range:
        """Which of its samples have places from `start` to `stop` of the stream."""
        low, high = (-(-(place - self.first) // self.stride) for place in (start, stop))
        return range(max(0, low), min(len(self.positions), high))


@dataclasses.dataclass(frozen=True, slots=True)
class _Pass:
    """A pass's shuffled blocks. blocks: first positions, int64 [M] · bounds: their limits in the sequence, int64 [M + 1]."""

    blocks: np.ndarray
    bounds: np.ndarray


class Order:
    """The order in which a split is read, step by step and pass by pass without end.

    Args:
        samples: number of samples of each shard.
        sizes: bytes of each shard.
        batch_size: of the global batch; the split's size at most.
        seed: 0 to 2**64 - 1.
    """

    def __init__(self, samples: Sequence[int], sizes: Sequence[int], *, batch_size: int, seed: int, config: StreamConfig) -> None:
        counts, weights = np.asarray(samples, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
        self.samples = int(counts.sum())
        self.batch_size = min(batch_size, self.samples)
        self.steps_per_pass = -(-self.samples // self.batch_size)
        self.lanes = min(config.lanes, self.samples)
        self.window = config.window
        self.block_bytes = max(1, min(config.block_bytes, int(weights.sum()) // BLOCKS_AT_LEAST))
        self._seed, self._most_ranks = seed, config.lanes
        blocks = np.clip((2 * weights + self.block_bytes) // (2 * self.block_bytes), np.minimum(counts, 1), counts)
        turns = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        inside = turns * np.repeat(counts, blocks) // np.repeat(blocks, blocks)
        self._edges = np.append(np.repeat(np.cumsum(counts) - counts, blocks) + inside, self.samples)
        # Reading ahead looks at two passes.
        self._pass = functools.lru_cache(maxsize=2)(self._shuffled)

    def _random(self, number: int, lane: int, window: int) -> np.random.Generator:
        # The key and the upper words of the counter name the generator, so no two of them ever overlap.
        return np.random.Generator(np.random.Philox(key=[self._seed, number], counter=[0, 0, window, lane + 1]))

    def _shuffled(self, number: int) -> _Pass:
        blocks = self._random(number, -1, 0).permutation(len(self._edges) - 1)
        lengths = self._edges[blocks + 1] - self._edges[blocks]
        return _Pass(blocks=self._edges[blocks], bounds=np.append(0, np.cumsum(lengths)))

    def _lane(self, number: int, lane: int, place: int) -> Iterator[Window]:
        """The windows of a lane in one pass, from the one that holds the pass's place `place`, or the lane's next one, on."""
        shuffled = self._pass(number)
        start = lane * (self.samples // self.lanes) + min(lane, self.samples % self.lanes)
        stop = start - (lane - self.samples) // self.lanes
        low = int(np.searchsorted(shuffled.bounds, start, side="right")) - 1
        high = int(np.searchsorted(shuffled.bounds, stop, side="left"))
        bounds = np.clip(shuffled.bounds[low : high + 1], start, stop)
        begins = shuffled.blocks[low:high] + bounds[:-1] - shuffled.bounds[low:high]
        # First windows differ in length, so that lanes do not all ask for new blocks at the same time.
        cuts = np.concatenate([[0], np.arange(1 + lane % self.window, high - low, self.window), [high - low]])
        skip = int(np.searchsorted(bounds[cuts], start - (lane - place) // self.lanes, side="right")) - 1
        for window in range(max(0, skip), len(cuts) - 1):
            pieces = slice(cuts[window], cuts[window + 1])
            lengths = np.diff(bounds[cuts[window] : cuts[window + 1] + 1])
            homes = np.repeat(np.arange(len(lengths)), lengths)
            positions = np.arange(len(homes)) + np.repeat(begins[pieces] - np.cumsum(lengths) + lengths, lengths)
            mixed = self._random(number, lane, window).permutation(len(homes))
            yield Window(
                first=number * self.samples + lane + self.lanes * int(bounds[cuts[window]] - start),
                stride=self.lanes,
                pieces=tuple(zip(begins[pieces].tolist(), (begins[pieces] + lengths).tolist(), strict=True)),
                positions=positions[mixed],
                homes=homes[mixed],
            )

    def windows(self, step: int, rank: int = 0, world_size: int = 1) -> Iterator[Window]:
        """The windows of a rank's lanes in the order in which they begin, from those in use at `step` on, without end.

        A rank that has no lane, because the split is smaller than the world, has none.
        """
        lanes = range(rank, self.lanes, world_size)
        start = self.places(step)[0]
        for number in itertools.count(start // self.samples) if lanes else ():
            place = max(0, start - number * self.samples)
            yield from heapq.merge(*(self._lane(number, lane, place) for lane in lanes), key=lambda window: window.first)

    def places(self, step: int) -> tuple[int, int]:
        """First place of global batch `step` in the whole stream, and the place past its last."""
        number, turn = divmod(step, self.steps_per_pass)
        base = number * self.samples
        return base + turn * self.batch_size, base + min((turn + 1) * self.batch_size, self.samples)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """A rank's samples of global batch `step`: places in the stream, increasing, and positions; int64 [n] each."""
        start, stop = self.places(step)
        found = [np.empty((2, 0), dtype=np.int64)]
        for window in itertools.takewhile(lambda window: window.first < stop, self.windows(step, rank, world_size)):
            part = window.between(start, stop)
            places = window.first + window.stride * np.arange(part.start, max(part.start, part.stop))
            found.append(np.stack([places, window.positions[part.start : part.stop]]))
        places, positions = np.concatenate(found, axis=1)
        turns = np.argsort(places)
        return places[turns], positions[turns]

    def share(self, step: int, world_size: int) -> int:
        """Samples of global batch `step` on the rank that has most: what every rank's part is padded to."""
        start, stop = self.places(step)
        base = start // self.samples * self.samples
        owners = np.arange(start - base, stop - base) % self.lanes % world_size
        return int(np.bincount(owners).max())

    def largest_share(self, world_size: int) -> int:
        """The largest share of any step.

        Raises:
            ConfigError: more ranks than lanes.
        """
        if world_size > self._most_ranks:
            cure = f"set stream.lanes to a multiple of {world_size}"
            raise ConfigError(f"stream.lanes: {self._most_ranks} lanes cannot be shared by {world_size} ranks", cure)
        # Shares repeat with the lane that a batch begins in.
        return max(self.share(step, world_size) for step in range(min(self.steps_per_pass, self.lanes)))
