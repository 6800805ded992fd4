"""The stage as a whole: its files, its diary, and the same bytes after any interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.ingest.samples import epub, pptx

from potstill.core.files import read_records
from potstill.errors import MissingExtraError
from potstill.ingest.content import Fragment
from potstill.ingest.language import language_of
from potstill.records import Chunk, Document, Rejected

Ingest = Callable[..., Any]
SAMPLES = ("sample:handbook.pdf", "sample:handbook.docx", "sample:handbook.md")


def test_the_sample_gives_documents_and_chunks_that_point_into_them(run_ingest: Ingest) -> None:
    outcome = run_ingest(*SAMPLES, chunk_tokens=250, overlap_tokens=50)
    data = outcome.folder / "data"
    documents = {row.id: row for row in read_records(data / "documents.jsonl", Document)}
    chunks = list(read_records(data / "chunks.jsonl", Chunk))
    assert [document.source for document in documents.values()] == list(SAMPLES)
    assert list(read_records(data / "rejected.jsonl", Rejected)) == []
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        document = documents[chunk.document]
        assert chunk.text == document.text[chunk.start : chunk.end]
        assert chunk.tokens <= 250
        touched = [p.number for p in document.pages if p.start < chunk.end and chunk.start < p.end]
        assert list(chunk.pages) == touched


def test_the_sample_pdf_reads_like_its_source(run_ingest: Ingest) -> None:
    outcome = run_ingest("sample:handbook.pdf", "sample:handbook.docx")
    pdf, word = (document["text"] for document in outcome.documents)
    assert len(outcome.documents[0]["pages"]) == 10
    for text in (pdf, word):
        assert text.startswith("Orrin Skerry Tidal Kelp-Drying Station\n\nOperating Handbook")
        assert "Petrel | 38 m | 54 | 58 °C | 3.4 m/s | 6 h 45 min" in text
        assert "Relief valve RV-31 | Lift by hand | 4 weeks | Chief stoker" in text
    assert "Page 3" not in pdf
    assert "Seventh edition" not in pdf
    # Every paragraph of the Word file stands whole in the PDF's text.
    paragraphs = [block for block in word.split("\n\n") if len(block) > 100]
    assert len(paragraphs) > 80
    assert [block for block in paragraphs if block not in pdf] == []


def test_the_diary_shows_progress_and_counts(run_ingest: Ingest) -> None:
    events = run_ingest(*SAMPLES).events
    progress = [event for event in events if event["kind"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 3
    metrics = {event["name"]: event["value"] for event in events if event["kind"] == "metric"}
    assert metrics["documents"] == 3


def data_bytes(outcome: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (outcome.folder / "data").iterdir()}


def test_the_same_inputs_give_the_same_bytes_and_a_half_written_draft_does_no_harm(
    run_ingest: Ingest, tmp_path: Path
) -> None:
    first = run_ingest(*SAMPLES)
    left_over = tmp_path / "killed" / "data"
    left_over.mkdir(parents=True)
    (left_over / "chunks.jsonl").write_text('{"torn": ')
    assert data_bytes(run_ingest(*SAMPLES, draft="killed")) == data_bytes(first)


def test_short_chunks_are_set_aside_with_their_text(run_ingest: Ingest, project: Path) -> None:
    long = "word " * 30 + "end."
    (project / "a.txt").write_text(f"{long}\n\nShort tail of text.")
    outcome = run_ingest("a.txt", chunk_tokens=32, min_chunk_tokens=10)
    assert len(outcome.chunks) == 1
    assert outcome.reasons == ["short_chunk"]
    assert outcome.rejected[0]["row"]["text"] == "Short tail of text."


class CountingEye:
    """Stands for the recogniser; fails after some pages, as a killed run would."""

    seen: list[int]
    fail_after: int

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def fragments(self, image: np.ndarray, dpi: float) -> list[Fragment]:
        if len(CountingEye.seen) >= CountingEye.fail_after:
            raise KeyboardInterrupt
        CountingEye.seen.append(image.shape[0])
        words = f"Page of {len(CountingEye.seen)} words that the eye has seen here."
        return [Fragment(words, 72.0, 300.0, 400.0, 312.0)]


def test_a_killed_run_does_not_recognise_a_page_twice(
    run_ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.ingest.ocr.Recogniser", CountingEye)
    CountingEye.seen, CountingEye.fail_after = [], 99
    whole = data_bytes(run_ingest("sample:handbook-scan.pdf", draft="whole"))
    assert len(CountingEye.seen) == 3
    CountingEye.seen, CountingEye.fail_after = [], 2
    with pytest.raises(KeyboardInterrupt):
        run_ingest("sample:handbook-scan.pdf")
    CountingEye.fail_after = 99
    again = data_bytes(run_ingest("sample:handbook-scan.pdf"))
    assert len(CountingEye.seen) == 3
    assert again == whole


def test_pages_are_drawn_at_the_resolution_asked_for(
    run_ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.ingest.ocr.Recogniser", CountingEye)
    CountingEye.seen, CountingEye.fail_after = [], 99
    run_ingest("sample:handbook-scan.pdf", ocr_dpi=72)
    assert CountingEye.seen == [842, 842, 842]


def test_a_scan_without_the_ocr_extra_names_the_install_line(
    run_ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match="Reading scanned pages") as caught:
        run_ingest("sample:handbook-scan.pdf")
    assert 'pip install "potstill[ocr]"' in caught.value.hint


def every_kind(project: Path) -> None:
    """A file of each kind that gives a document."""
    from potstill.sample import sample_path

    text = sample_path("handbook.md").read_text("utf-8")[:9000]
    (project / "a.md").write_text(text)
    (project / "b.txt").write_text(text[3000:])
    paragraphs = "".join(f"<p>{one}</p>" for one in text.split("\n\n") if "|" not in one)
    (project / "c.html").write_text(f"<h1>Book</h1>{paragraphs}")
    (project / "d.epub").write_bytes(epub(**{"OEBPS__two.xhtml": paragraphs.encode()}))
    (project / "e.pptx").write_bytes(pptx(*text.split(". ")[:20]))


@pytest.mark.parametrize("keep_sections", [True, False])
def test_chunks_cover_what_every_reader_read(
    run_ingest: Ingest, project: Path, keep_sections: bool
) -> None:
    every_kind(project)
    sources = (".", "sample:handbook.pdf", "sample:handbook.docx")
    outcome = run_ingest(*sources, chunk_tokens=120, overlap_tokens=30, keep_sections=keep_sections)
    chunks = [*outcome.chunks, *(one["row"] for one in outcome.rejected)]
    assert len(outcome.documents) == 7
    assert {one["language"] for one in outcome.documents} == {"en"}
    for document in outcome.documents:
        text = document["text"]
        left = list(text)
        for chunk in chunks:
            if chunk["document"] == document["id"]:
                assert chunk["text"] == text[chunk["start"] : chunk["end"]]
                left[chunk["start"] : chunk["end"]] = [""] * (chunk["end"] - chunk["start"])
        assert "".join(left).strip() == ""


def test_a_chunk_ends_before_a_section_that_does_not_fit(run_ingest: Ingest, project: Path) -> None:
    sentence = "The valve is opened once a week by the stoker."
    sections = [f"Section {number}\n\n" + f"{sentence}\n\n" * 4 for number in range(6)]
    (project / "a.txt").write_text("\n\n".join(sections))
    whole = run_ingest("a.txt", chunk_tokens=64)
    assert [chunk["text"].split("\n")[0] for chunk in whole.chunks] == [
        f"Section {number}" for number in range(6)
    ]
    filled = run_ingest("a.txt", chunk_tokens=64, keep_sections=False, draft="filled")
    assert len(filled.chunks) < len(whole.chunks)
    assert not filled.chunks[1]["text"].startswith("Section")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Das Ventil öffnet bei 93 Grad und lässt das heiße Wasser in den Teich.", "de"),
        ("La soupape s'ouvre à 93 degrés et laisse couler l'eau chaude.", "fr"),
        (
            "バルブは九十三度で開き、熱い水を沈殿池に流します。係員は毎週、蒸留器の圧力を確認します。",
            "ja",
        ),
        ("12 34 56 78 RV-31 A-7", ""),
    ],
)
def test_the_language_is_noted_where_it_is_clear(text: str, language: str) -> None:
    assert language_of(text) == language
