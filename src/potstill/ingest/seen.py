"""Pages that were recognised, each remembered as soon as it is done.

In: pages to be drawn. Out: their text `Fragment`s, from memory or from the OCR engine.
OCR is the slow part of reading; a run that was killed does not look at a page twice.
Knows no file format: a page is whatever says its size in points and can be drawn.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.core.files import read_json, write_atomic
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import Fragment

POINTS_PER_INCH = 72.0
LONGEST_SIDE = 4000  # pixels; a poster is drawn at a lower resolution


class SeenPages:
    """OCR of pages. `identity` names the file that is being read.

    The engine is loaded at the first page that needs it, and serves all files.
    """

    def __init__(self, config: IngestConfig, folder: Path, threads: int) -> None:
        self.config, self.folder, self.threads = config, folder, threads
        self.identity = ""
        self._engine: Any = None

    def see(self, page: Any, number: int) -> list[Fragment]:
        """The page's text lines. `page`: a pypdfium2 page or a `pictures.Frame`.

        Errors: MissingExtraError, UnusableError for a page that takes too long.
        """
        memory = self.folder / f"{self.identity}-{number}.json"
        if memory.exists():
            return [Fragment(*values) for values in read_json(memory)]
        if self._engine is None:
            self._engine = self._load()
        dpi = min(float(self.config.ocr_dpi), LONGEST_SIDE * POINTS_PER_INCH / max(page.get_size()))
        image = page.render(scale=dpi / POINTS_PER_INCH, maybe_alpha=False).to_numpy()
        fragments: list[Fragment] = self._engine.fragments(image, dpi)
        rows = [astuple(fragment) for fragment in fragments]
        write_atomic(memory, json.dumps(rows, ensure_ascii=False))
        return fragments

    def _load(self) -> Any:
        require("numpy", "ocr", "Reading scanned pages")
        if self.config.ocr_engine == "tesseract":
            require("PIL", "ocr", "Reading scanned pages")
            from potstill.ingest.tesseract import Tesseract

            return Tesseract(self.config.ocr_language)
        from potstill.ingest.ocr import Recogniser

        return Recogniser(self.threads)
