"""Every file that cannot be used is named with its reason, and the others go on."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from potstill.errors import InputError, MissingExtraError, StoreError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


SENTENCE = "Valve RV-31 opens at 93 degrees and lets the hot water run to settling pond A."
Ingest = Callable[..., Any]


def pdf_bytes(*pages: str, **options: Any) -> bytes:
    """A PDF with one text a page; its lines as given."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1, **options)
    for text in pages:
        for number, line in enumerate(text.split("\n")):
            canvas.drawString(72, 760 - 14 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def docx_bytes(*paragraphs: str) -> bytes:
    document = docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def of_zip_version(version: int, archive: bytes) -> bytes:
    """The archive, said to need that version of the format (6 bytes into a directory entry)."""
    entry = archive.index(b"PK\x01\x02")
    return archive[: entry + 6] + bytes([version]) + archive[entry + 7 :]


def zip_bytes(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def many_pages(count: int) -> bytes:
    """A PDF with `count` pages that share one content stream; small and quick to make."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count %d/Kids[%s]>>"
        % (count, b" ".join(b"%d 0 R" % (3 + number) for number in range(count))),
        *[b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]>>"] * count,
    ]
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj%sendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start))
    return out.getvalue()


WHOLE_PDF = pdf_bytes(*[SENTENCE] * 3)
BAD = {
    "empty.pdf": (b"", "empty_file", r"empty \(0 bytes\)"),
    "locked.pdf": (
        pdf_bytes(SENTENCE, encrypt=StandardEncryption("user", "owner", strength=128)),
        "encrypted_pdf",
        "locked with a password",
    ),
    "half.pdf": (WHOLE_PDF[: len(WHOLE_PDF) // 2], "truncated_pdf", "breaks off before its end"),
    "start.pdf": (WHOLE_PDF[:20], "truncated_pdf", "breaks off before its end"),
    "garbage.pdf": (b"%PDF-1.7\n" + b"garbage " * 99 + b"%%EOF", "damaged_pdf", "is damaged"),
    "long.pdf": (many_pages(10_000), "too_many_pages", "10,000 pages.*2,000"),
    "blank.pdf": (pdf_bytes(""), "no_text", "no page holds any text"),
    "picture.pdf": (PNG, "not_what_it_says", "named .pdf but is a PNG picture"),
    "text.pdf": (b"only some words", "not_what_it_says", "named .pdf but is text"),
    "sheet.docx": (zip_bytes(xl__workbook=b"<x/>"), "not_docx", "not a Word document"),
    "old.docx": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        "not_what_it_says",
        "old or password-protected Office file",
    ),
    "cut.docx": (docx_bytes(SENTENCE)[:5000], "damaged_docx", "damaged"),
    "future.docx": (of_zip_version(99, docx_bytes(SENTENCE)), "damaged_docx", "damaged"),
    "broken.docx": (
        zip_bytes(**{"word__document.xml": b"<w:document", "[Content_Types].xml": b"<"}),
        "damaged_docx",
        "damaged",
    ),
    "bomb.docx": (
        zip_bytes(**{"word__document.xml": bytes(70_000_000)}),
        "zip_bomb",
        "unpacks to 70 MB",
    ),
    "hollow.docx": (docx_bytes(), "no_text", "holds no text"),
    "picture.txt": (PNG, "not_what_it_says", "named .txt but is a PNG picture"),
    "binary.md": (bytes(range(32)) * 40, "not_what_it_says", "named .md but is binary data"),
    "blank.txt": (b" \n\t\n", "no_text", "only white space"),
    "tiny.txt": (b"two words", "too_short", "only 2 tokens"),
    "sheet.xlsx": (zip_bytes(xl__workbook=b"<x/>"), "unsupported_type", ".xlsx are not read"),
    "noname": (b"text", "unsupported_type", "without a suffix"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_alone_ends_in_one_clear_line_that_names_it(
    project: Path, run_ingest: Ingest, name: str
) -> None:
    data, reason, words = BAD[name]
    (project / name).write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        run_ingest(name)
    assert name in caught.value.message
    assert "\n" not in str(caught.value)
    (event,) = [one for one in run_ingest.events if one["kind"] == "rejected"]  # type: ignore[attr-defined]
    assert event["reason"] == reason
    assert re.search(words, event["detail"])


def test_bad_files_are_set_aside_with_their_reasons_and_the_good_one_goes_on(
    project: Path, run_ingest: Ingest
) -> None:
    for name, (data, _, _) in BAD.items():
        (project / name).write_bytes(data)
    (project / "good.txt").write_text(SENTENCE)
    outcome = run_ingest(".")
    assert [row["source"] for row in outcome.documents] == ["good.txt"]
    reasons = {row["row"]["source"]: row["reason"] for row in outcome.rejected}
    assert reasons == {name: reason for name, (_, reason, _) in BAD.items()}


def test_a_folder_without_a_usable_document_gives_the_first_reason_and_the_others(
    project: Path, run_ingest: Ingest
) -> None:
    (project / "docs").mkdir()
    (project / "docs" / "a.pdf").write_bytes(b"")
    (project / "docs" / "b.xlsx").write_bytes(PNG)
    with pytest.raises(InputError, match="None of the 2 source files can be used") as caught:
        run_ingest("docs")
    assert "unsupported_type" in caught.value.hint


def test_a_long_pdf_is_refused_without_being_read(project: Path, run_ingest: Ingest) -> None:
    (project / "long.pdf").write_bytes(many_pages(10_000))
    start = time.process_time()
    with pytest.raises(InputError, match="10,000 pages"):
        run_ingest("long.pdf")
    assert time.process_time() - start < 2.0


def test_a_file_over_the_size_limit_is_refused_unread(project: Path, run_ingest: Ingest) -> None:
    (project / "big.txt").write_text(SENTENCE * 10)
    with pytest.raises(InputError, match="max_file_bytes allows 100"):
        run_ingest("big.txt", max_file_bytes=100)


def test_the_same_content_twice_is_read_once(project: Path, run_ingest: Ingest) -> None:
    (project / "a.txt").write_text(SENTENCE)
    (project / "b.txt").write_text(SENTENCE)
    outcome = run_ingest("*.txt")
    assert outcome.reasons == ["duplicate_file"]
    assert outcome.rejected[0]["detail"] == "the same content as a.txt"


def test_a_missing_reader_package_is_named_with_its_install_line(
    project: Path, run_ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    (project / "a.pdf").write_bytes(WHOLE_PDF)
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingExtraError) as caught:
        run_ingest("a.pdf")
    assert 'pip install "potstill[documents]"' in caught.value.hint


def test_a_disk_that_refuses_is_one_clear_line(project: Path, run_ingest: Ingest) -> None:
    (project / "a.txt").write_text(SENTENCE)
    (project.parent / "draft" / "data" / "chunks.jsonl").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"Cannot write .*chunks\.jsonl"):
        run_ingest("a.txt")
