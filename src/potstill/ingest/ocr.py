"""Text from a picture of a page, by RapidOCR on the CPU.

In: a page as an array of pixels. Out: `Fragment`s in points, set upright.
The models come inside the RapidOCR package, so nothing is downloaded. Knows no PDF.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core.extras import require
from potstill.ingest.content import Fragment

MOST_THREADS = 2
MOST_SKEW = math.radians(8.0)
POINTS_PER_INCH = 72.0
NARROWED = 0.8
"""Pages are shown narrower: a line costs by its width, and the letters stay clear enough."""


class Recogniser:
    """RapidOCR in memory. Errors: MissingExtraError without the `ocr` extra."""

    def __init__(self, threads: int) -> None:
        require("onnxruntime", "ocr", "Reading scanned pages")
        module = require("rapidocr", "ocr", "Reading scanned pages")
        self._engine: Any = module.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.max_side_len": 4000,  # pages are drawn no larger; never shrink them
                # Lines are found on a smaller picture than the one on which they are read.
                "Det.limit_type": "max",
                "Det.limit_side_len": 1280,
                # One line at a time: batches are padded to their longest line, and the padding
                # costs a third more time and makes a line's text depend on its neighbours.
                "Rec.rec_batch_num": 1,
                "EngineConfig.onnxruntime.intra_op_num_threads": max(1, min(MOST_THREADS, threads)),
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def fragments(self, image: NDArray[np.uint8], dpi: float) -> list[Fragment]:
        """The page's text lines. `image`: height x width x 3, BGR; `dpi`: its dots per inch."""
        cv2 = require("cv2", "ocr", "Reading scanned pages")  # RapidOCR brings it
        height, width = image.shape[:2]
        narrow = cv2.resize(
            image, (max(1, round(width * NARROWED)), height), None, 0, 0, cv2.INTER_AREA
        )
        result = self._engine(narrow)
        if result.boxes is None or result.txts is None:
            return []
        scale = np.array([width / narrow.shape[1], 1.0]) * (POINTS_PER_INCH / dpi)
        quads = np.asarray(result.boxes, dtype=np.float64) * scale
        return upright(quads, list(result.txts))


def upright(quads: NDArray[np.float64], texts: list[str]) -> list[Fragment]:
    """Fragments of text boxes, turned back by the page's own slant.

    `quads`: n x 4 x 2, corners clockwise from the top left. Scans are rarely straight, and half a
    degree already lifts a table's last column by a third of a line.
    """
    across = quads[:, 1] - quads[:, 0]
    slants = np.arctan2(across[:, 1], across[:, 0])
    widths = np.hypot(across[:, 0], across[:, 1])
    wide = widths >= np.median(widths)
    skew = median(slants[wide].tolist())
    if abs(skew) > MOST_SKEW:
        skew = 0.0
    turn = np.array([[math.cos(skew), math.sin(skew)], [-math.sin(skew), math.cos(skew)]])
    fragments = []
    for quad, text in zip(quads @ turn.T, texts, strict=True):
        (left, top), (right, bottom) = quad.min(axis=0).tolist(), quad.max(axis=0).tolist()
        fragments.append(Fragment(text, left, top, right, bottom))
    return fragments
