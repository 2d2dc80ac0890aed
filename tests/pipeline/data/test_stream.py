"""Laws of the stream: coverage, order, equal steps, the same global batch at every world size, checked bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import ImagesConfig
from pipeline.data.images import encode_png
from pipeline.data.stream import ImageReader, Samples, Stream, to_tensor
from pipeline.errors import DataError, IntegrityError


def make_samples(folder: Path, count: int) -> Samples:
    """One file of concatenated images and its rows."""
    import hashlib

    columns: dict = {name: [] for name in ("key", "shard", "offset", "size", "ext", "label", "group", "sha256")}
    content = b""
    for number in range(count):
        data = encode_png(np.full((8, 8, 1), number % 256, np.uint8))
        sha256 = hashlib.sha256(data).hexdigest()
        values = (f"k{number}", "all.tar", len(content), len(data), "png", number % 3, number % 2, sha256)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
        content += data
    (folder / "all.tar").write_bytes(content)
    return Samples(columns)


def make_stream(samples: Samples, folder: Path, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 3) -> Stream:
    reader = ImageReader(samples, folder=str(folder), size=8, channels=1, images=ImagesConfig())
    return Stream(reader, batch_size=batch_size, seed=seed, salt="salt", rank=rank, world_size=world_size)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 40), batch_size=st.integers(1, 17), world_size=st.integers(1, 4), start=st.integers(0, 7))
def test_every_key_is_seen_once_a_pass_and_ranks_step_alike(
    tmp_path: Path, count: int, batch_size: int, world_size: int, start: int
) -> None:
    samples = make_samples(tmp_path, count)
    alone = make_stream(samples, tmp_path, batch_size)
    ranks = [make_stream(samples, tmp_path, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({stream.steps_per_pass for stream in ranks}) == 1
    per_pass = alone.steps_per_pass
    for step in range(start * per_pass, (start + 2) * per_pass):
        whole = alone.batch(step)
        parts = [stream.batch(step) for stream in ranks]
        assert len({len(part.weights) for part in parts}) == 1, "equal shapes on all ranks"
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
        real = np.concatenate([part.images[part.weights > 0] for part in parts])
        assert np.array_equal(real, whole.images)
        for stream, part in zip((alone, *ranks), (whole, *parts), strict=True):
            stream.count(part)
    seen = sum(stream.seen for stream in ranks)
    coverage = alone.coverage("forget", passes=2, seen=seen, digest=alone.merged([stream.digest.hex() for stream in ranks]))
    assert coverage.complete
    assert coverage.samples_seen == 2 * count == alone.seen
    one_less = alone.coverage("forget", passes=3, seen=seen, digest=alone.digest.hex())
    assert not one_less.complete
    for stream in (alone, *ranks):
        stream.close()


def test_any_step_can_be_read_first(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 20)
    walked, jumped = make_stream(samples, tmp_path, 6), make_stream(samples, tmp_path, 6)
    batches = [walked.batch(step) for step in range(9)]
    assert np.array_equal(batches[7].images, jumped.batch(7).images)
    orders = [np.concatenate([batches[p * 4 + n].rows for n in range(4)]).tolist() for p in (0, 1)]
    assert orders[0] != orders[1], "another order each pass"
    other = make_stream(samples, tmp_path, 6, seed=4)
    assert other.batch(0).rows.tolist() != batches[0].rows.tolist()
    for stream in (walked, jumped, other):
        stream.close()


def test_a_changed_byte_names_shard_and_key(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 5)
    file = tmp_path / "all.tar"
    content = bytearray(file.read_bytes())
    content[samples.columns["offset"][3] + 40] ^= 1
    file.write_bytes(content)
    reader = ImageReader(samples, folder=str(tmp_path), size=8, channels=1, images=ImagesConfig())
    assert reader.fetch(np.array([2]))[0, 0, 0, 0] == 2
    with pytest.raises(IntegrityError, match=r"all\.tar: k3\.png"):
        reader.fetch(np.array([2, 3]))
    file.unlink()
    reader.close()
    absent = ImageReader(samples, folder=str(tmp_path), size=8, channels=1, images=ImagesConfig())
    with pytest.raises(DataError, match=r"all\.tar"):
        absent.fetch(np.array([0]))


def test_an_empty_split_is_refused_and_pixels_become_floats(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 1)
    with pytest.raises(DataError, match="no samples"):
        make_stream(samples.take(np.array([], dtype=np.int64)), tmp_path, 4)
    images = np.array([[[[0], [255]]]], dtype=np.uint8)
    tensor = to_tensor(images)
    assert tensor.shape == (1, 1, 1, 2)
    assert tensor.flatten().tolist() == [0.0, 1.0]
    assert samples.take(np.array([True])).keys == ["k0"]
