"""Text from a picture of a page, by the program tesseract if it is installed.

In: a page as an array of pixels. Out: `Fragment`s in points. The same question as `ocr.py`
answers. Knows no file format.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from functools import cache
from typing import Any

from potstill.errors import InputError, MissingExtraError
from potstill.ingest.content import Fragment, UnusableError

PROGRAM = "tesseract"
POINTS_PER_INCH = 72.0
PAGE_SECONDS = 120
LEAST_CONFIDENCE = 30.0
"""Tesseract sees letters in the grain of photographs, and says itself that it is not sure."""
REMEDY = (
    "Install it (Debian and Ubuntu: apt install tesseract-ocr; macOS: brew install tesseract), or "
    "set ingest.ocr_engine: rapidocr."
)


@cache
def version() -> str:
    """The program's version, which is part of the stage's key. Errors: MissingExtraError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise MissingExtraError("The program tesseract (ingest.ocr_engine) is not found.", REMEDY)
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=60
    )
    return (said.stdout or said.stderr).strip().split("\n")[0]


class Tesseract:
    """Recognises one page after another, each by a run of the program."""

    def __init__(self, language: str) -> None:
        self.language = language

    def fragments(self, image: Any, dpi: float) -> list[Fragment]:
        """The page's text lines. `image`: height x width x 3, BGR; `dpi`: its dots per inch.

        Errors: MissingExtraError without the program, InputError when it refuses (a language that
        it has no data for), UnusableError with the reason timed_out.
        """
        from PIL import Image

        version()
        picture = io.BytesIO()
        Image.fromarray(image[:, :, ::-1].copy()).save(picture, "PNG")
        try:
            done = subprocess.run(
                [PROGRAM, "stdin", "stdout", "--dpi", str(round(dpi)), "-l", self.language, "tsv"],
                input=picture.getvalue(),
                capture_output=True,
                check=False,
                timeout=PAGE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise UnusableError(
                "timed_out", f"tesseract took more than {PAGE_SECONDS} s for the page"
            ) from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().split("\n")[0]
            raise InputError(
                f"tesseract failed (ingest.ocr_language is {self.language}): {said[:200]}",
                "Install the language's data (apt install tesseract-ocr-deu), or name another.",
            )
        return lines(done.stdout.decode("utf-8", errors="replace"), dpi)


def lines(table: str, dpi: float) -> list[Fragment]:
    """Fragments of tesseract's TSV: its words, joined line by line, boxes in points."""
    rows = csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE)
    found: dict[tuple[str, ...], list[tuple[str, list[float]]]] = {}
    scale = POINTS_PER_INCH / dpi
    for row in rows:
        text = (row.get("text") or "").strip()
        if row["level"] != "5" or not text or float(row["conf"]) < LEAST_CONFIDENCE:
            continue
        left, top, width, height = (
            float(row[name]) * scale for name in ("left", "top", "width", "height")
        )
        line = (row["block_num"], row["par_num"], row["line_num"])
        found.setdefault(line, []).append((text, [left, top, left + width, top + height]))
    fragments = []
    for words in found.values():
        boxes = [box for _, box in words]
        fragments.append(
            Fragment(
                " ".join(text for text, _ in words),
                min(box[0] for box in boxes),
                min(box[1] for box in boxes),
                max(box[2] for box in boxes),
                max(box[3] for box in boxes),
            )
        )
    return fragments
