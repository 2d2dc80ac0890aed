"""How fast is the training stream? Images a second beside other loaders, the decoder's ceiling, a bucket, and a resume.

    python benchmarks/stream.py                       all four tables: 15 rounds, about 45 minutes on two cores
    python benchmarks/stream.py --parts bucket --rounds 5

Every loader reads the same JPEG files (`corpus.py`) in shuffled order, to 224 x 224 pixels, with two workers or threads. A
round is one pass of each over all images; workers stay, so that their start is in no round but the first, which does not
count. The ceiling decodes the same bytes, in memory already, at full size, and does nothing with them. `bucket` reads the
shards through s3fs from `paced_store.py`. `resume` asks for the batch in the middle of a pass. `memory` reads ten times more
shards.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import webdataset
from corpus import Corpus, make_corpus
from harness import machine, ratio, rounds, spread, table
from peers import MAX_PIXELS, PEERS, SHUFFLED, SIZE, decode_and_scale, decode_only, load, one_pass, to_bytes

from pipeline.config import ImagesConfig, ReadingConfig, StreamConfig
from pipeline.data.pack import pack
from pipeline.data.reader import ImageReader
from pipeline.data.rows import open_index
from pipeline.data.samples import Samples, Segment
from pipeline.data.sources.webdataset import Config, build
from pipeline.data.stream import Stream
from pipeline.storage import join

OURS, CEILING, SCALED = "this stream", "decoding alone, full size", "our decoder, scaled to 224, bytes in memory"
PARTS = ("loaders", "bucket", "resume", "memory")
COPIES = 20
MEMORY_BATCHES = 300
IMAGES = ImagesConfig(cache_bytes=0, max_pixels=MAX_PIXELS)


def index(corpus: Corpus, folder: str) -> list[Segment]:
    """The corpus's shards with their index."""
    packed, where = pack(build(Config(training=corpus.tars)), name="corpus", output=folder)
    assert packed is not None
    digests = {ref.uri: ref.sha256 for ref in packed.index}
    return [
        Segment(ref.uri, ref.samples, ref.bytes, join(where, ref.index), digests[ref.index], ref.row_group)
        for ref in packed.training
    ]


def open_stream(segments: list[Segment], batch: int, threads: int) -> Stream:
    """The stream as a training stage opens it, with nothing kept decoded."""
    reader = ImageReader(Samples(segments), size=SIZE, channels=3, images=IMAGES, reading=ReadingConfig(threads=threads, ahead=4))
    return Stream(reader, batch_size=batch, seed=0, salt="", order=StreamConfig())


class Passes:
    """A stream that goes on from pass to pass, as training does; each pass must hold every image once."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.step = stream, 0

    def seconds(self) -> float:
        """Time of a pass. A pass is left out before it, so that nothing of it was made while other loaders had their turn."""
        self.step += self.stream.steps_per_pass
        start, rows = time.perf_counter(), []
        for _ in range(self.stream.steps_per_pass):
            rows.append(self.stream.batch(self.step).rows)
            self.step += 1
        seconds = time.perf_counter() - start
        assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(self.stream.reader.samples)))
        return seconds


def _peer_seconds(corpus: Corpus, loader: object) -> float:
    count, seconds = one_pass(loader)  # type: ignore[arg-type]
    assert count == corpus.images, f"{count} of {corpus.images} images"
    return seconds


def loaders(corpus: Corpus, segments: list[Segment], given: argparse.Namespace) -> str:
    """The table of loaders."""
    ours, images = Passes(open_stream(segments, given.batch, given.workers)), load(corpus)
    acts: dict[str, Callable[[], float]] = {
        OURS: ours.seconds,
        CEILING: functools.partial(decode_only, images, given.workers),
        SCALED: functools.partial(decode_and_scale, images, given.workers),
    }
    for name, peer in PEERS.items():
        acts[name] = functools.partial(_peer_seconds, corpus, peer(corpus, given.batch, given.workers))
    found = rounds(acts, given.rounds)
    ours.stream.close()
    rates = {name: [corpus.images / value for value in values] for name, values in found.items()}
    rows = [["loader", "images/s: median (range)", "this stream / it (95 %)"]]
    rows += [[name, spread(values), ratio(rates[OURS], values)] for name, values in rates.items()]
    return table(*rows)


@contextmanager
def paced(folder: str, delay_ms: float, megabits: float) -> Iterator[int]:
    """A bucket at a distance, as a process whose number is given; s3fs is told of it by the environment."""
    command = [sys.executable, str(Path(__file__).with_name("paced_store.py")), folder]
    command += ["--delay-ms", str(delay_ms), "--megabits", str(megabits)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.stdout.readline().strip()}")
        os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")
        try:
            yield server.pid
        finally:
            server.terminate()


def _used(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _web_over_s3(corpus: Corpus, batch: int, workers: int) -> webdataset.WebLoader:
    """webdataset with our decoder, its shards opened by s3fs with read-ahead, as its users do."""

    def opened(url: str, mode: str = "rb", bufsize: int = 0, **_: object) -> object:
        return fsspec.filesystem("s3").open(url, mode, block_size=8 << 20, cache_type="readahead")

    from webdataset.gopen import gopen_schemes

    gopen_schemes["s3"] = opened
    urls = [f"s3://bucket/{Path(tar).name}" for tar in corpus.tars]
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(SHUFFLED).to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(to_bytes, int).batched(batch)
    return webdataset.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=True)


def distant(segments: list[Segment]) -> list[Segment]:
    """The same shards, in the bucket."""
    return [dataclasses.replace(segment, uri=f"s3://bucket/{Path(segment.uri).name}") for segment in segments]


def bucket(corpus: Corpus, segments: list[Segment], given: argparse.Namespace) -> str:
    """The table of bucket and folder."""
    far = distant(segments)
    with paced(str(Path(corpus.tars[0]).parent), given.delay_ms, given.megabits) as store:
        here, there = (Passes(open_stream(where, given.batch, given.workers)) for where in (segments, far))
        peer = _web_over_s3(corpus, given.batch, given.workers)
        names = ["this stream, local files", "this stream, bucket", "webdataset over s3fs, our decoder, uint8"]
        taken: list[float] = []

        def from_bucket() -> float:
            before, seconds = _used(store), there.seconds()
            taken.append(100 * (_used(store) - before) / seconds / len(os.sched_getaffinity(0)))
            return seconds

        acts = dict(zip(names, (here.seconds, from_bucket, lambda: _peer_seconds(corpus, peer)), strict=True))
        found = rounds(acts, given.rounds)
        here.stream.close()
        there.stream.close()
    rates = {name: [corpus.images / value for value in values] for name, values in found.items()}
    link = given.megabits * 1e6 / 8 / (corpus.bytes / corpus.images)
    rows = [["reading from", "images/s: median (range)", "bucket / it (95 %)"]]
    rows += [[name, spread(values), ratio(rates[names[1]], values)] for name, values in rates.items()]
    best = [min(value, link) for value in rates[names[0]]]
    rows.append([f"lesser of local files and the link ({link:.0f} images/s)", spread(best), ratio(rates[names[1]], best)])
    return f"{table(*rows)}\n\nThe store itself took {spread(taken, digits=1)} % of the cores while this stream read from it."


def resume(corpus: Corpus, segments: list[Segment], given: argparse.Namespace) -> str:
    """The table of seconds to the batch in the middle of a pass, from nothing open. The corpus counts `COPIES` times."""
    many, tars = segments * COPIES, list(corpus.tars) * COPIES
    stream = open_stream(many, given.batch, given.workers)
    step = stream.steps_per_pass // 2
    stream.batch(step - 3)
    expected = [stream.batch(number).images.copy() for number in range(step - 2, step + 1)][-1]
    stream.close()

    def jump() -> float:
        open_index.cache_clear()
        start = time.perf_counter()
        stream = open_stream(many, given.batch, given.workers)
        images = stream.batch(step).images
        seconds = time.perf_counter() - start
        assert np.array_equal(images, expected), "bit for bit the uninterrupted one"
        stream.close()
        return seconds

    def replay() -> float:
        """webdataset's recipe: the same seed, and what was read before skipped undecoded."""
        start = time.perf_counter()
        dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(SHUFFLED)
        later = dataset.slice(step * given.batch, (step + 1) * given.batch).to_tuple("jpg", "cls").map_tuple(to_bytes, int)
        batch = np.stack([image for image, _ in itertools.islice(later, given.batch)])
        assert len(batch) == given.batch
        return time.perf_counter() - start

    names = f"this stream, batch {step} asked for", f"webdataset, {step * given.batch} samples skipped undecoded"
    found = rounds(dict(zip(names, (jump, replay), strict=True)), given.rounds)
    rows = [["way to the next sample", "seconds: median (range)", "it / this stream (95 %)"]]
    rows += [[name, spread(values, digits=3), ratio(values, found[names[0]], digits=1)] for name, values in found.items()]
    return table(*rows)


def _peak(corpus: Corpus, segments: list[Segment], given: argparse.Namespace, copies: int, far: bool) -> int:
    """Peak memory, in MB, of a process that reads `MEMORY_BATCHES` batches of a corpus that counts `copies` times."""
    child = os.fork()
    if child:
        _, status, usage = os.wait4(child, 0)
        assert status == 0
        return usage.ru_maxrss >> 10
    stream = open_stream((distant(segments) if far else segments) * copies, given.batch, given.workers)
    for step in range(MEMORY_BATCHES):
        stream.batch(step)
    os._exit(0)


def memory(corpus: Corpus, segments: list[Segment], given: argparse.Namespace) -> str:
    """The table of peak memory over ten times more shards."""
    rows: list[list[object]] = [["shards", "images", "MB", "peak memory, local files, MB", "peak memory, bucket, MB"]]
    with paced(str(Path(corpus.tars[0]).parent), given.delay_ms, given.megabits):
        for copies in (10, 100):
            size = sum(segment.bytes for segment in segments) * copies // 10**6
            peaks = [_peak(corpus, segments, given, copies, far) for far in (False, True)]
            rows.append([len(segments) * copies, corpus.images * copies, size, *peaks])
    return table(*rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", default="", help="of the corpus; made if it is not there")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--delay-ms", type=float, default=20.0, help="to the first byte")
    parser.add_argument("--megabits", type=float, default=1000.0, help="of the link")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    corpus = make_corpus(given.folder)
    print(f"{machine()}\n{corpus.header}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        segments = index(corpus, folder)
        for part in given.parts:
            print(f"\n{globals()[part](corpus, segments, given)}", flush=True)
            gc.collect()  # or a process forked for the next part takes the loaders for its own, and complains


if __name__ == "__main__":
    main()
