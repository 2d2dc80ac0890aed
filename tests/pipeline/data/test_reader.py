"""Reading at any positions, in the background of a stream, and the end of it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import storage
from pipeline.config import ImagesConfig, ReadingConfig, StreamConfig
from pipeline.data.reader import ImageReader, decoding_threads
from pipeline.data.samples import Samples, Segment
from pipeline.data.stream import Stream
from pipeline.errors import DataError, IntegrityError
from tests.pipeline.data.bucket import Bucket, make_reader
from tests.pipeline.data.test_stream import NO_CACHE, make_samples, make_table


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()
    monkeypatch.setattr(storage, "read_range", made.read_range, raising=False)
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positions=st.lists(st.integers(0, 69), max_size=90), remote=st.booleans(), keep=st.booleans())
def test_any_positions_come_in_order(bucket: Bucket, tmp_path: Path, positions: list[int], remote: bool, keep: bool) -> None:
    samples = bucket.put(70, 4) if remote else make_samples(tmp_path, 70, 4)
    images = ImagesConfig() if keep else NO_CACHE
    reader = ImageReader(samples, folder=str(tmp_path), size=8, channels=1, images=images, reading=ReadingConfig(threads=2))
    for _ in range(2):
        found = reader.fetch(np.array(positions, dtype=np.int64))
        assert found.shape == (len(positions), 8, 8, 1)
        assert found[:, 7, 7, 0].tolist() == positions
    reader.close()


def test_a_changed_byte_or_a_missing_shard_is_named(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 5)
    file = tmp_path / "0.tar"
    content = bytearray(file.read_bytes())
    content[samples.rows(0).offset[3] + 40] ^= 1
    file.write_bytes(content)
    reader = ImageReader(samples, folder=str(tmp_path), size=8, channels=1, images=ImagesConfig())
    assert reader.fetch(np.array([2]))[0, 0, 0, 0] == 2
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"0\.tar: k3\.png"):
            reader.fetch(np.array([2, 3]))
    file.write_bytes(content[:200])
    with pytest.raises(IntegrityError, match=r"0\.tar: k4\.png"):
        reader.fetch(np.array([4]))
    reader.close()
    file.unlink()
    absent = ImageReader(samples, folder=str(tmp_path), size=8, channels=1, images=ImagesConfig())
    with pytest.raises(DataError, match=r"0\.tar: k0\.png"):
        absent.fetch(np.array([0]))
    absent.close()


def test_large_images_are_cut_and_more_shards_than_open_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.files.FILES_OPEN", 5)
    segments, tables = [], []
    for number in range(40):
        out = io.BytesIO()
        Image.new("RGB", (60, 30), (number, 2 * number, 3 * number)).save(out, "PNG")
        (tmp_path / f"{number}.tar").write_bytes(out.getvalue())
        segments.append(Segment(uri=str(tmp_path / f"{number}.tar"), samples=1, bytes=len(out.getvalue())))
        tables.append(make_table([out.getvalue()], number))
    reader = ImageReader(Samples(segments, tables), size=16, channels=3, images=NO_CACHE)
    stream = Stream(reader, batch_size=8, seed=1, salt="")
    for step in range(10):
        batch = stream.batch(step)
        assert batch.images[:, 5, 5].tolist() == [[row, 2 * row, 3 * row] for row in batch.rows]
        assert len(reader.shards._files._open) <= 5 + 2
    stream.close()


def test_samples_are_read_while_a_stream_waits_for_its_user(bucket: Bucket) -> None:
    samples = bucket.put(300, 3)
    reader = make_reader(samples, in_flight=2)
    stream = Stream(reader, batch_size=8, seed=1, salt="", order=StreamConfig(lanes=2, block_bytes=300, window=1))
    for step in range(30):
        stream.batch(step)
        wanted = np.arange(step, step + 40)
        assert np.array_equal(reader.fetch(wanted)[:, 0, 0, 0], wanted % 256)
    stream.close()


def test_closing_does_not_wait_for_the_storage(bucket: Bucket) -> None:
    gate = threading.Event()
    reader = make_reader(bucket.put(40, 2))
    stream = Stream(reader, batch_size=4, seed=1, salt="")
    stream.batch(0)
    bucket.delay = lambda: float(not gate.wait(20))
    stream._ahead._restart(3)
    started = time.monotonic()
    stream._ahead._due.append(stream._ahead._begin(3))
    stream.close()
    stream.close()
    assert time.monotonic() - started < 10
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
    gate.set()
    ended = time.monotonic() + 15
    while time.monotonic() < ended and any(thread.name.startswith("fetch") for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")]
    with pytest.raises(ValueError, match="closed"):
        reader.fetch(np.array([0]))


def test_threads_are_the_ranks_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert decoding_threads(ReadingConfig()) == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert decoding_threads(ReadingConfig()) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "50")
    assert decoding_threads(ReadingConfig()) == 1
    assert decoding_threads(ReadingConfig(threads=3)) == 3


LEFT_OPEN = """
import sys
from pathlib import Path
from tests.pipeline.data.test_stream import make_samples, make_stream
stream = make_stream(make_samples(Path(sys.argv[1]), 400, 8), Path(sys.argv[1]), 16)
stream.batch(3)
sys.exit(7)
"""


def test_a_process_that_ends_in_the_middle_keeps_its_exit_code(tmp_path: Path) -> None:
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(tmp_path)], capture_output=True, text=True, timeout=100)
        assert (ended.returncode, ended.stderr) == (7, "")
