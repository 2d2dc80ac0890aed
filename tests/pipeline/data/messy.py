"""A small messy tree of PNGs, of the layout of Debian's openclipart-png."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import PNG_START


def drawing(number: int, mode: str = "RGBA", side: int = 50) -> bytes:
    """A PNG that differs for each number; `mode` as Pillow has it, `side` x `side + 7` pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (side + 7, side, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert("RGB" if mode == "P" else mode).convert(mode).save(out, format="PNG")
    return out.getvalue()


def header_only(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_START + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))


def put(root: Path, files: Mapping[str, bytes]) -> None:
    """Write files below the root."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def messy_tree(root: Path) -> Path:
    """Eight good images in two classes, and of everything else that must not be packed at least one."""
    put(
        root,
        {
            "animals/owl_01.png": drawing(1),
            "animals/birds/a.b.PNG": drawing(2, "P", 90),
            "animals/birds/grey.png": drawing(3, "L", 200),
            "animals/birds/copy.png": drawing(1),
            "food/one.png": drawing(4, "RGB"),
            "food/two.png": drawing(5, "LA"),
            "food/fruit/copy.png": drawing(1),
            "food/fruit/three.png": drawing(6),
            "food/fruit/four.png": drawing(7),
            "food/fruit/five.png": drawing(8),
            "food/fruit/huge.png": header_only(100_000, 100_000),
            "food/fruit/cut.png": drawing(9)[:-200],
            "food/fruit/flipped.png": drawing(10)[:500] + b"\0\0\0\0" + drawing(10)[504:],
            "food/fruit/text.png": b"not an image",
            "food/fruit/notes.txt": b"words",
            "food/fruit/tiny.png": drawing(11, side=20),
            "unsorted/any.png": drawing(12),
        },
    )
    (root / "animals/link.png").symlink_to("owl_01.png")
    (root / "animals/outside.png").symlink_to("/etc/hostname")
    (root / "animals/loop").symlink_to("..")
    return root
