"""Other loaders over the corpus, each as its own pages recommend, and the ceiling that decoding alone sets.

    python benchmarks/peers.py [--folder FOLDER] [--workers 2] [--batch 64] [--passes 3]

Each peer is a function of corpus, batch and workers that returns a loader; iterating it once is one pass and yields
(images, labels). Images are fp32 [n, 3, 224, 224] in [0, 1] with the usual Pillow transform (short side scaled to 224,
bilinear, then the centre cut), or uint8 [n, 224, 224, 3] with our decoder. The first pass counts the start of workers.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import os
import platform
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import simplejpeg
import torch
import webdataset
from corpus import Corpus, make_corpus, read_tar
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.data.images import decode_into

SIZE = 224
MAX_PIXELS = 64_000_000
SHUFFLED = 1000
"""Samples in webdataset's shuffle buffer, as in its pages."""

Batches = Iterable[tuple[Any, Any]]


def _scaled(image: Image.Image) -> Image.Image:
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def to_float(image: Image.Image) -> torch.Tensor:
    """What torchvision's Resize, CenterCrop and ToTensor do: fp32 [3, 224, 224] in [0, 1]."""
    image = _scaled(image.convert("RGB"))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)


def to_usual_bytes(data: bytes) -> np.ndarray:
    """simplejpeg, then the usual transform: the whole image scaled, then cut; uint8 [224, 224, 3]."""
    image = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    return np.array(_scaled(image))


def to_bytes(data: bytes) -> np.ndarray:
    """Our decoder: uint8 [224, 224, 3]."""
    out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    decode_into(out, data, fit="crop", max_pixels=MAX_PIXELS, where="corpus")
    return out


def _same(value: Any) -> Any:
    return value


def _class(data: bytes) -> int:
    return int(data)


def _webdataset(corpus: Corpus) -> webdataset.WebDataset:
    return webdataset.WebDataset(list(corpus.tars), shardshuffle=len(corpus.tars), seed=0).shuffle(SHUFFLED)


def _web_loader(dataset: webdataset.WebDataset, batch: int, workers: int) -> Batches:
    # Batches are made in the workers: its pages call this the fast way. A last, smaller batch of each worker is kept.
    return webdataset.WebLoader(
        dataset.batched(batch), batch_size=None, shuffle=False, num_workers=workers, persistent_workers=workers > 0
    )


def webdataset_stock(corpus: Corpus, batch: int, workers: int) -> Batches:
    """Decode with Pillow in the workers, shuffle 1,000, fp32, default collation."""
    dataset = _webdataset(corpus).decode("pil").to_tuple("jpg", "cls").map_tuple(to_float, _same)
    return _web_loader(dataset, batch, workers)


def webdataset_codec(corpus: Corpus, batch: int, workers: int) -> Batches:
    """The same with our codec, and uint8."""
    return _web_loader(_webdataset(corpus).to_tuple("jpg", "cls").map_tuple(to_usual_bytes, _class), batch, workers)


def webdataset_ours(corpus: Corpus, batch: int, workers: int) -> Batches:
    """The same with our decoder and uint8."""
    return _web_loader(_webdataset(corpus).to_tuple("jpg", "cls").map_tuple(to_bytes, _class), batch, workers)


def _open_float(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return to_float(Image.open(io.BytesIO(sample["image"]))), sample["class"]


def _open_bytes(sample: dict[str, Any]) -> tuple[np.ndarray, int]:
    return to_bytes(sample["image"]), sample["class"]


def _open_usual(sample: dict[str, Any]) -> tuple[np.ndarray, int]:
    return to_usual_bytes(sample["image"]), sample["class"]


def _litdata(transform: Callable, corpus: Corpus, batch: int, workers: int) -> Batches:
    dataset = litdata.StreamingDataset(corpus.litdata, shuffle=True, drop_last=False, seed=0, transform=transform)
    return litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)


def litdata_stock(corpus: Corpus, batch: int, workers: int) -> Batches:
    """StreamingDataset with a Pillow transform, fp32, default collation."""
    return _litdata(_open_float, corpus, batch, workers)


def litdata_codec(corpus: Corpus, batch: int, workers: int) -> Batches:
    """The same with our codec, and uint8."""
    return _litdata(_open_usual, corpus, batch, workers)


def litdata_ours(corpus: Corpus, batch: int, workers: int) -> Batches:
    """The same with our decoder and uint8."""
    return _litdata(_open_bytes, corpus, batch, workers)


PEERS: dict[str, Callable[[Corpus, int, int], Batches]] = {
    "webdataset, Pillow, fp32": webdataset_stock,
    "webdataset, our codec, usual transform, uint8": webdataset_codec,
    "webdataset, our decoder whole, uint8": webdataset_ours,
    "litdata, Pillow, fp32": litdata_stock,
    "litdata, our codec, usual transform, uint8": litdata_codec,
    "litdata, our decoder whole, uint8": litdata_ours,
}


def one_pass(loader: Batches) -> tuple[int, float]:
    """Images of one pass, and its seconds."""
    start, count = time.perf_counter(), 0
    for images, labels in loader:
        assert len(images) == len(labels)
        count += len(images)
    return count, time.perf_counter() - start


def load(corpus: Corpus, shards: int | None = None) -> list[bytes]:
    """Image bytes of the first `shards` shards, or of all, into memory."""
    return [image for path in corpus.tars[:shards] for image, _ in read_tar(path)]


def _in_threads(work: Callable[[Iterator[bytes]], None], images: Sequence[bytes], threads: int) -> float:
    """Seconds for `work` on all images, each thread with every threads-th of them."""
    team = [threading.Thread(target=work, args=(iter(images[first::threads]),)) for first in range(threads)]
    start = time.perf_counter()
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return time.perf_counter() - start


def decode_only(images: Sequence[bytes], threads: int) -> float:
    """The ceiling: seconds to decode bytes in memory with simplejpeg to full size, nothing kept, nothing scaled."""

    def work(mine: Iterator[bytes]) -> None:
        for data in mine:
            simplejpeg.decode_jpeg(data, "RGB")

    return _in_threads(work, images, threads)


def decode_and_scale(images: Sequence[bytes], threads: int) -> float:
    """Our decoder on the same bytes, to 224 px into preallocated batches."""

    def work(mine: Iterator[bytes]) -> None:
        batch = np.empty((64, SIZE, SIZE, 3), dtype=np.uint8)
        for place, data in enumerate(mine):
            decode_into(batch[place % 64], data, fit="crop", max_pixels=MAX_PIXELS, where="corpus")

    return _in_threads(work, images, threads)


def _row(name: str, images: int, seconds: Sequence[float]) -> str:
    later = seconds[1:] or seconds
    rates = sorted(images / second for second in later)
    first = images / seconds[0]
    return f"| {name} | {first:.0f} | {statistics.median(rates):.0f} ({rates[0]:.0f} - {rates[-1]:.0f}) |"


def main() -> None:
    """Time each peer by itself and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--passes", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    corpus = make_corpus(given.folder)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {given.workers} workers or threads")
    print(f"{corpus.header}\n\n| loader | img/s, first pass | img/s, later passes: median (range) |\n| --- | --- | --- |")
    images = load(corpus)
    for name, ceiling in (("decoding alone", decode_only), ("our decoder, scaled to 224", decode_and_scale)):
        timed = functools.partial(ceiling, images, given.workers)
        print(_row(name, corpus.images, [timed() for _ in range(given.passes)]), flush=True)
    del images, timed
    for name, peer in PEERS.items():
        loader, seconds = peer(corpus, given.batch, given.workers), []
        for _ in range(given.passes):
            count, second = one_pass(loader)
            assert count == corpus.images, f"{name}: {count} of {corpus.images} images"
            seconds.append(second)
        print(_row(name, corpus.images, seconds), flush=True)
        del loader  # the next peer's workers must not inherit this one's
        gc.collect()


if __name__ == "__main__":
    main()
