"""The sample handbook is there in all its formats, small, and says the same in each."""

from __future__ import annotations

import re
from contextlib import closing

import pypdfium2
import pytest

from potstill.errors import InputError
from potstill.sample import sample_files, sample_path

MEGABYTE = 1_000_000


def test_the_samples_are_files_below_a_megabyte() -> None:
    files = sample_files()
    handbooks = ["handbook-scan.pdf", "handbook-squad.json", "handbook.docx", "handbook.md"]
    assert list(files) == ["final_qa.csv", *handbooks, "handbook.pdf"]
    assert all(1000 < path.stat().st_size < MEGABYTE for path in files.values())
    assert files["handbook-scan.pdf"].stat().st_size < 700_000


@pytest.mark.parametrize(("name", "pages", "has_text"), [
    ("handbook.pdf", 10, True),
    ("handbook-scan.pdf", 3, False),
])  # fmt: skip
def test_the_pdf_has_text_and_the_scan_has_none(name: str, pages: int, has_text: bool) -> None:
    with closing(pypdfium2.PdfDocument(sample_path(name))) as document:
        assert len(document) == pages
        for page in document:
            with closing(page.get_textpage()) as text:
                assert (text.count_chars() > 500) == has_text


def test_the_pdf_was_built_from_the_source_that_is_shipped() -> None:
    source = sample_path("handbook.md").read_text("utf-8")
    with closing(pypdfium2.PdfDocument(sample_path("handbook.pdf"))) as document:
        text = "".join(page.get_textpage().get_text_range() for page in document)
    numbers = re.findall(r"\d[\d,.:]*\d", source)
    assert len(numbers) > 300
    assert [number for number in numbers if number not in text] == []


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="no sample file"):
        sample_path("../errors.py")
