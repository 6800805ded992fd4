"""Whatever the bytes of a file are, it becomes records or is set aside with a reason, soon."""

from __future__ import annotations

import io
import json
import tempfile
import time
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from potstill import sample
from potstill.ingest.config import IngestConfig
from potstill.ingest.content import UnusableError
from potstill.ingest.one import Task, read_one, summary_of
from potstill.ingest.seen import SeenPages

CORPUS = sorted((Path(__file__).parent / "corpus" / "files").iterdir())
SECONDS = 20.0
"""For a file of a few kilobytes, on a busy machine."""
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))
PIECES = [
    b"",
    b"\x00",
    b"\xff" * 4,
    b"\xff\xfe",
    b"%PDF-1.7\n",
    b"PK\x03\x04",
    b"endobj",
    b"/Length 99999999 ",
    b"<![CDATA[",
    b'<!ENTITY a "&a;&a;">',
    b"&a;",
    b'"',
    b"\n" * 40,
    b"[" * 200,
    b'{"a":' * 200,
    b"\xed\xa0\x80",
    b"1e999",
    b"NaN",
]


@cache
def whole() -> dict[str, bytes]:
    """A small good file of each kind that is read without OCR."""
    from PIL import Image

    text = sample.sample_path("handbook.md").read_text("utf-8")[:1500]
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}.", "context": text} for n in "ab"]
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    squad = json.loads(sample.sample_path("handbook-squad.json").read_text("utf-8"))
    squad["data"] = squad["data"][:1]
    squad["data"][0]["paragraphs"] = squad["data"][0]["paragraphs"][:1]
    picture = io.BytesIO()
    Image.new("L", (40, 20), 255).save(picture, "PNG")
    return {
        ".md": text.encode(),
        ".txt": text.encode("utf-16"),
        ".html": f"<html><body><h1>A</h1><p>{text}</p><table><tr><td>1</table>".encode(),
        ".pdf": pdf(),
        ".docx": sample.sample_path("handbook.docx").read_bytes(),
        ".pptx": slides(text[:300]),
        ".epub": book(text),
        ".csv": f'question,answer\n"What is a?","{text[:60]}"\nWhat is b?,It is b.\n'.encode(),
        ".tsv": b"question\tanswer\nWhat is a?\tIt is a.\n",
        ".jsonl": lines.encode(),
        ".json": json.dumps({"rows": rows}).encode(),
        ".squad.json": json.dumps(squad).encode(),
        ".parquet": table(rows),
        ".png": picture.getvalue(),
    }


def pdf() -> bytes:
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    for line in range(12):
        canvas.drawString(
            72, 760 - 14 * line, "Valve RV-31 opens at 93 degrees and lets water run."
        )
    canvas.save()
    return buffer.getvalue()


def slides(text: str) -> bytes:
    import pptx

    made = pptx.Presentation()
    slide = made.slides.add_slide(made.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Valves", text
    buffer = io.BytesIO()
    made.save(buffer)
    return buffer.getvalue()


def book(text: str) -> bytes:
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="a.opf"/></rootfiles></container>'
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="c" href="c.xhtml" '
        'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine>'
        "</package>"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("a.opf", package)
        archive.writestr("c.xhtml", f"<html><body><p>{text}</p></body></html>")
    return buffer.getvalue()


def table(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def count(text: str) -> int:
    return len(text.split())


def read(suffix: str, data: bytes) -> Any:
    """What the file gives: its summary, or the reason why it gives nothing."""
    config = IngestConfig(
        sources=["x"], chunk_tokens=64, overlap_tokens=0, min_chunk_tokens=1, ocr="never"
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = folder / f"fuzz{suffix}"
        path.write_bytes(data)
        pages = SeenPages(config, folder / "ocr", 1)
        began, said = time.process_time(), ""
        try:
            part = read_one(
                Task(path.name, path, "0" * 16), config, count, folder, pages, lambda *given: None
            )
            found: Any = summary_of(part)["counts"]
            for records in part.glob("*.jsonl"):
                for line in records.read_text("utf-8").split("\n")[:-1]:  # U+2028 ends no line
                    json.loads(line)
        except UnusableError as problem:
            found, said = problem.reason, problem.detail
        # Named by the process that reads (worker.py); they are the only others that may come.
        except (MemoryError, RecursionError) as error:
            found = type(error).__name__
        assert time.process_time() - began < SECONDS
    assert isinstance(found, dict) or found.isidentifier()
    assert "\n" not in said
    return found


@st.composite
def mutated(draw: st.DrawFn, most: int = 5) -> tuple[str, bytes]:
    """A file of some kind with bytes changed, put in, cut out; of archives also the members."""
    suffix = draw(st.sampled_from(sorted(whole())))
    data = whole()[suffix]
    if data.startswith(b"PK") and draw(st.booleans()):
        return suffix, rezipped(draw, data)
    return suffix, changed(draw, data, most)


def changed(draw: st.DrawFn, data: bytes, most: int = 5) -> bytes:
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=8) | st.just(data[at:end]))
        data = data[:at] + piece + data[draw(st.sampled_from([at, end, len(data)])) :]
    return data


def rezipped(draw: st.DrawFn, data: bytes) -> bytes:
    """The archive anew, one of its members changed: its checksums are right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = [one for one in old.namelist() if not one.endswith("/")]
        chosen = draw(st.sampled_from(names))
        for name in names:
            content = old.read(name)
            new.writestr(name, changed(draw, content) if name == chosen else content)
    return buffer.getvalue()


def test_the_good_files_are_read() -> None:
    found = {suffix: read(suffix, data) for suffix, data in whole().items()}
    assert isinstance(found.pop(".png"), str)  # pictures are not read without OCR
    assert all(isinstance(one, dict) for one in found.values()), found


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    """Files that once gave something else than a reason."""
    read(path.suffix, path.read_bytes())


@settings(QUIET, max_examples=120)
@given(file=mutated())
@example(file=(".pdf", b"%PDF-1.7\n%%EOF"))
def test_mutated_files(file: tuple[str, bytes]) -> None:
    read(*file)


@pytest.mark.slow
@settings(QUIET, max_examples=2500)
@given(file=mutated(most=12))
def test_many_mutated_files(file: tuple[str, bytes]) -> None:
    read(*file)


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".epub", ".html"])
def test_entities_read_nothing_and_do_not_multiply(suffix: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the-planted-secret")
    bombs = "".join(f'<!ENTITY b{n} "{f"&b{n - 1};" * 10}">' for n in range(1, 12))
    declared = (
        f'<!DOCTYPE x [<!ENTITY a SYSTEM "{secret.as_uri()}"><!ENTITY b0 "{"ha" * 50}">{bombs}]>'
    )
    for entity in ("&a;", "&b11;"):
        data = whole()[suffix]
        if suffix == ".html":
            data = declared.encode() + data.replace(b"<p>", f"<p>{entity}".encode(), 1)
        else:
            data = with_entity(data, declared, entity)
        path = tmp_path / f"one{suffix}"
        path.write_bytes(data)
        config = IngestConfig(
            sources=["x"], chunk_tokens=64, overlap_tokens=0, min_chunk_tokens=1, ocr="never"
        )
        pages = SeenPages(config, tmp_path / "ocr", 1)
        task = Task(path.name, path, f"{len(entity)}" * 16)
        began = time.process_time()
        try:
            part = read_one(task, config, count, tmp_path, pages, lambda *given: None)
            text = "".join(one.read_text("utf-8") for one in part.glob("*.jsonl"))
        except UnusableError as problem:
            text = problem.detail
        assert "planted" not in text
        assert len(text) < 100_000
        assert time.process_time() - began < SECONDS


def with_entity(data: bytes, declared: str, entity: str) -> bytes:
    """The archive, with the entity in the text of each of its XML files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name.startswith(("word/document", "ppt/slides/slide1.", "c.xhtml")):
                words = text.decode("utf-8")
                start = words.find("?>") + 2 if words.startswith("<?xml") else 0
                body = words[start:]
                for mark in ("<w:t>", '<w:t xml:space="preserve">', "<a:t>", "<p>"):
                    body = body.replace(mark, mark + entity, 1)
                assert entity in body
                text = (words[:start] + declared + body).encode()
            new.writestr(name, text)
    return buffer.getvalue()
