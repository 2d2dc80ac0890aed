"""A corpus of real JPEG files of mixed sizes, made once: WebDataset tars and the same images as a litdata dataset.

    python benchmarks/corpus.py [--folder FOLDER] [--shards 20] [--images 250]

The pictures are random crops of photographs in Debian's plasma-workspace-wallpapers and mate-backgrounds
(`apt-get install --no-install-recommends plasma-workspace-wallpapers mate-backgrounds`), or 1/f noise where neither
is installed. Short side 300 to 600 px; nine of ten landscape or portrait; quality 75 to 95; 4:2:0, one in six 4:4:4,
one in ten progressive, one in twenty grey. Equal arguments give equal tars.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path("/usr/share/wallpapers")
MORE_PHOTOS = Path("/usr/share/backgrounds/mate/nature")
# The wallpapers that are photographs; the others are drawings, which compress far better than any photograph.
PHOTO_NAMES = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"),
    *("Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
)
CLASSES = 100


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where the images lie, how many there are, and what they show. bytes: of the JPEG files alone."""

    tars: tuple[str, ...]
    litdata: str
    images: int
    bytes: int
    content: str

    @property
    def header(self) -> str:
        """One line for the head of a table."""
        return f"{self.images} JPEG files, {self.bytes / self.images / 1000:.0f} kB each, {len(self.tars)} shards: {self.content}"


def _photographs() -> list[Path]:
    found = [PHOTOS / name / "contents/images/2560x1600.jpg" for name in PHOTO_NAMES]
    return [path for path in [*found, *sorted(MORE_PHOTOS.glob("*.jpg"))] if path.is_file()]


@functools.lru_cache(maxsize=40)
def _photograph(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _noise(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Colour noise with the 1/f spectrum of natural images."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(width, height)
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency
        plane = np.fft.irfft2(spectrum, (height, width))
        planes.append(128 + 50 * plane / plane.std())
    mixed = np.stack([planes[0] + 0.2 * (plane - 128) for plane in planes], axis=-1)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _picture(random: np.random.Generator, photographs: list[Path]) -> bytes:
    """One JPEG file."""
    short = int(random.integers(300, 601))
    sides = [short, short if random.random() < 0.1 else round(short * random.uniform(1.2, 1.6))]
    width, height = sides if random.random() < 0.3 else sides[::-1]
    if photographs:
        photo = _photograph(photographs[random.integers(len(photographs))])
        # A crop one to two times as large as the file: downscaled like most photographs on the web, never blown up.
        scale = min(random.uniform(1, 2), photo.width / width, photo.height / height)
        wide, high = round(width * scale), round(height * scale)
        left, top = int(random.integers(photo.width - wide + 1)), int(random.integers(photo.height - high + 1))
        image = photo.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        image = _noise(random, width, height)
    if random.random() < 0.05:
        image = image.convert("L")
    out = io.BytesIO()
    sampling = "4:4:4" if random.random() < 1 / 6 else "4:2:0"
    quality = int(random.integers(75, 96))
    image.save(out, format="JPEG", quality=quality, subsampling=sampling, progressive=bool(random.random() < 0.1))
    return out.getvalue()


def _write_shard(path: Path, number: int, images: int) -> int:
    """One tar of KEY.jpg and KEY.cls; returns the bytes of its images."""
    photographs, total = _photographs(), 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place in range(images):
            random = np.random.default_rng([number, place])
            picture = _picture(random, photographs)
            total += len(picture)
            label = str(int(random.integers(CLASSES))).encode()
            for ext, content in (("jpg", picture), ("cls", label)):
                info = tarfile.TarInfo(f"{number:05d}-{place:05d}.{ext}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return total


def read_tar(path: str) -> list[tuple[bytes, int]]:
    """Image bytes and label of all samples of one shard, in order."""
    with tarfile.open(path) as tar:
        contents = [tar.extractfile(info).read() for info in tar]  # type: ignore[union-attr]
    return [(image, int(label)) for image, label in zip(contents[::2], contents[1::2], strict=True)]


def _litdata_samples(path: str):
    for image, label in read_tar(path):
        yield {"image": image, "class": label}


def make_corpus(folder: str = "", *, shards: int = 20, images: int = 250) -> Corpus:
    """The corpus in `folder`, which is made if it is not there; a default folder if none is given.

    Args:
        folder: its parent must exist; a half-made corpus is removed and made again.
        shards: number of tars.
        images: images in each.
    """
    place = Path(folder or Path(tempfile.gettempdir(), f"unlearn-corpus-{shards}x{images}"))
    done = place / "corpus.json"
    if not done.is_file():
        if place.is_dir() and not set(os.listdir(place)) <= {"tars", "litdata"}:
            raise SystemExit(f"{place}: holds other files; give an empty folder")
        shutil.rmtree(place, ignore_errors=True)
        (place / "tars").mkdir(parents=True)
        paths = [place / "tars" / f"shard-{number:05d}.tar" for number in range(shards)]
        with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            sizes = list(pool.map(_write_shard, paths, range(shards), [images] * shards))
        from litdata import optimize  # slow to import, and only wanted once

        optimize(
            fn=_litdata_samples,
            inputs=[str(path) for path in paths],
            output_dir=str(place / "litdata"),
            chunk_bytes="64MB",
            num_workers=os.cpu_count(),
        )
        count = len(_photographs())
        content = f"random crops of {count} photographs (Debian wallpapers)" if count else "synthetic 1/f noise"
        done.write_text(json.dumps({"images": shards * images, "bytes": sum(sizes), "content": content}))
    tars = tuple(str(path) for path in sorted((place / "tars").glob("*.tar")))
    return Corpus(tars=tars, litdata=str(place / "litdata"), **json.loads(done.read_text()))


def main() -> None:
    """Make it and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--images", type=int, default=250)
    given = parser.parse_args()
    print(make_corpus(given.folder, shards=given.shards, images=given.images).header)


if __name__ == "__main__":
    main()
