"""Picture grids: one column an image, one row a view of it (truth, hidden input, before, after, retrained).

The background is transparent and the labels are mid-grey, so that one file reads well on light and on dark pages.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw"]

CELL, GAP, ROW_GAP, LABEL_WIDTH, HEAD, FONT = 96, 6, 10, 148, 34, 22
# LABEL_WIDTH is the least; a longer label, of a compared method, widens it.
# 4.5 : 1 against white, 4.6 : 1 against near-black: legible on both.
INK = (118, 118, 118, 255)


def draw(rows: list[tuple[str, NDArray[np.uint8]]]) -> bytes:
    """A labelled grid as PNG bytes.

    Args:
        rows: label and images of each row, uint8 [n, H, W, C], C is 1 or 3; the same n in all rows, at least 1.
            Pixels are enlarged by whole numbers without smoothing; images above the cell's size are reduced.
    """
    num, font = len(rows[0][1]), ImageFont.load_default(size=FONT)
    left = max(LABEL_WIDTH, *(math.ceil(font.getlength(label)) + 2 * GAP for label, _ in rows))
    width = left + num * (CELL + GAP) - GAP
    height = HEAD + len(rows) * (CELL + ROW_GAP) - ROW_GAP
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    for column in range(num):
        pen.text((left + column * (CELL + GAP) + CELL / 2, HEAD / 2 - 4), str(column + 1), INK, font, anchor="mm")
    for line, (label, images) in enumerate(rows):
        top = HEAD + line * (CELL + ROW_GAP)
        pen.text((0, top + CELL / 2), label, INK, font, anchor="lm")
        for column, image in enumerate(images):
            canvas.paste(_cell(image), (left + column * (CELL + GAP), top))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _cell(image_HWC: NDArray[np.uint8]) -> Image.Image:
    """One image centred in a cell of CELL x CELL pixels."""
    channels = image_HWC.shape[2]
    picture = Image.fromarray(image_HWC[:, :, 0] if channels == 1 else image_HWC).convert("RGB")
    longest = max(picture.size)
    if longest > CELL:
        picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    else:
        times = CELL // longest
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    # 28 x 28 does not divide the cell: a thin transparent margin is left rather than blurred pixels.
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return cell
