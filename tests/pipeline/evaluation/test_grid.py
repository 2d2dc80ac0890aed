import io

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.grid import CELL, GAP, HEAD, LABEL_WIDTH, ROW_GAP, draw


@pytest.mark.parametrize("shape", [(32, 32, 1), (28, 28, 3), (200, 100, 3), (1, 1, 1)])
def test_grid_holds_every_image_unblurred(shape):
    images = np.random.default_rng(0).integers(0, 255, (3, *shape), dtype=np.uint8)
    content = draw([("truth", images), ("after", images)])
    picture = Image.open(io.BytesIO(content))
    assert picture.size == (LABEL_WIDTH + 3 * (CELL + GAP) - GAP, HEAD + 2 * (CELL + ROW_GAP) - ROW_GAP)
    assert draw([("truth", images), ("after", images)]) == content
    if shape == (32, 32, 1):
        cell = np.asarray(picture)[HEAD : HEAD + CELL, LABEL_WIDTH : LABEL_WIDTH + CELL, 0]
        assert (cell[1::3, 1::3] == images[0, :, :, 0]).all()
