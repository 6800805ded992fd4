"""Picture files go through OCR, page by page; bombs and broken ones are refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.ingest.samples import page_picture

from potstill.errors import InputError, MissingExtraError
from potstill.ingest import tesseract
from potstill.ingest.content import Fragment, UnusableError
from potstill.ingest.pictures import read_picture

Ingest = Callable[..., Any]
LINE = "The boiler of unit 7 holds 1250 litres"


class Eye:
    """Draws the frames as the OCR would, and remembers what it was shown."""

    def __init__(self, dpi: float = 200.0) -> None:
        self.dpi = dpi
        self.shown: list[np.ndarray] = []

    def __call__(self, page: Any, number: int) -> list[Fragment]:
        image = page.render(scale=self.dpi / 72, maybe_alpha=False).to_numpy()
        self.shown.append(image)
        return [Fragment(f"Seen on page {number}.", 72, 72, 300, 90)]


def read(path: Path, eye: Eye, most: int = 10) -> Any:
    return read_picture(path, "auto", most, eye, lambda done, of: None)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tiff"])
def test_every_kind_of_picture_is_shown_upright_and_in_its_colours(
    tmp_path: Path, kind: str
) -> None:
    image = Image.new("RGB", (300, 200), (250, 10, 10))
    image.save(tmp_path / f"a.{kind}", dpi=(100, 100))
    eye = Eye(dpi=96)
    reading = read(tmp_path / f"a.{kind}", eye)
    assert reading.pages[0].blocks == ["Seen on page 1."]
    assert reading.pages[0].method == "ocr"
    blue, green, red = eye.shown[0].mean(axis=(0, 1))
    assert red > 240
    assert max(blue, green) < 25
    assert eye.shown[0].dtype == np.uint8


def test_each_page_of_a_tiff_is_a_page(tmp_path: Path) -> None:
    first, second = Image.new("1", (1600, 800), 1), Image.new("L", (1600, 800), 255)
    path = tmp_path / "fax.tif"
    first.save(path, save_all=True, append_images=[second], dpi=(200, 200))
    eye = Eye()
    assert [page.number for page in read(path, eye).pages] == [1, 2]
    assert [image.shape for image in eye.shown] == [(800, 1600, 3)] * 2
    with pytest.raises(UnusableError, match=r"2 pages, and ingest\.max_pages allows 1"):
        read(path, Eye(), most=1)


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 200), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "a.jpg", exif=exif)
    eye = Eye(dpi=96)
    read(tmp_path / "a.jpg", eye)
    assert eye.shown[0].shape == (300, 200, 3)


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("I;16", 65535), ("CMYK", (0,) * 4)],
)
def test_what_is_clear_or_deep_or_meant_for_print_is_white(
    tmp_path: Path, mode: str, colour: Any
) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (200, 200), colour).save(path)
    eye = Eye(dpi=96)
    read(path, eye)
    assert eye.shown[0].min() >= 250


@pytest.mark.parametrize(
    ("size", "dpi", "drawn"),
    [((2480, 3508), 300, 2339), ((2480, 3508), 72, 2340), ((800, 600), None, 1250)],
)
def test_pictures_are_drawn_as_large_as_the_page_they_show(
    tmp_path: Path, size: tuple[int, int], dpi: int | None, drawn: int
) -> None:
    path = tmp_path / "a.png"
    Image.new("L", size, 255).save(path, **({"dpi": (dpi, dpi)} if dpi else {}))
    eye = Eye(dpi=200)
    read(path, eye)
    assert abs(eye.shown[0].shape[0] - drawn) < 3


def bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(60_001))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", body) + part(b"IEND", b"")


def cut(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("bomb.png", bomb(), "image_bomb"),
        ("cut.png", cut("PNG"), "damaged_picture"),
        ("cut.jpg", cut("JPEG"), "damaged_picture"),
        ("cut.tif", cut("TIFF"), "damaged_picture"),
        ("page.png", b"<html>", "not_what_it_says"),
    ],
)
def test_a_bad_picture_is_one_clear_line(
    project: Path, run_ingest: Ingest, name: str, data: bytes, reason: str
) -> None:
    (project / name).write_bytes(data)
    with pytest.raises(InputError):
        run_ingest(name)
    (event,) = [one for one in run_ingest.events if one["kind"] == "rejected"]  # type: ignore[attr-defined]
    assert event["reason"] == reason


def test_a_picture_needs_ocr(project: Path, run_ingest: Ingest) -> None:
    page_picture(LINE).save(project / "a.png")
    with pytest.raises(InputError, match=r"picture, and ingest\.ocr is never"):
        run_ingest("a.png", ocr="never")


def test_words_in_a_picture_are_read(project: Path, run_ingest: Ingest) -> None:
    page_picture(LINE, "and is emptied every 4 weeks.").save(project / "a.png")
    (document,) = run_ingest("a.png").documents
    assert "1250" in document["text"]
    assert "emptied" in document["text"]
    assert document["pages"][0]["method"] == "ocr"


TABLE = (
    "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"
    "4\t1\t1\t1\t1\t0\t100\t100\t900\t50\t-1\t\n"
    "5\t1\t1\t1\t1\t1\t100\t100\t200\t50\t96.1\tThe\n"
    "5\t1\t1\t1\t1\t2\t320\t104\t400\t50\t91.0\t\"boiler\"\n"
    "5\t1\t1\t1\t1\t3\t800\t104\t10\t50\t3.0\t~\n"
    "5\t1\t1\t1\t2\t1\t100\t200\t300\t50\t90.0\tholds\n"
)  # fmt: skip


def test_tesseracts_words_become_lines_in_points() -> None:
    first, second = tesseract.lines(TABLE, 144.0)
    assert first == Fragment('The "boiler"', 50, 50, 360, 77)
    assert second.text == "holds"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for tesseract that checks how it is called."""
    path = tmp_path / "bin" / "tesseract"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "tesseract 5.9.9"; exit 0; fi\n'
        'if [ "$6" != eng+fra ]; then echo "Error opening data file $6" >&2; exit 1; fi\n'
        f"head -c 4 | grep -q PNG || exit 2\ncat > /dev/null\nprintf '%s' '{TABLE}'\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    tesseract.version.cache_clear()
    yield path
    tesseract.version.cache_clear()


def test_tesseract_reads_where_the_recipe_says_so(
    project: Path, run_ingest: Ingest, program: Path
) -> None:
    page_picture(LINE).save(project / "a.png")
    outcome = run_ingest(
        "a.png", ocr_engine="tesseract", ocr_language="eng+fra", min_chunk_tokens=1
    )
    assert outcome.documents[0]["text"] == 'The "boiler" holds'
    assert tesseract.version() == "tesseract 5.9.9"
    with pytest.raises(InputError, match=r"ocr_language is deu.*Error opening data file deu"):
        run_ingest("a.png", draft="other", ocr_engine="tesseract", ocr_language="deu")


def test_a_page_on_which_tesseract_hangs_is_set_aside_alone(
    project: Path, run_ingest: Ingest, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tesseract, "PAGE_SECONDS", 0.3)
    slow = f"mkdir {project}/met 2> /dev/null && exec sleep 9\nhead -c 4 |"
    program.write_text(program.read_text().replace("head -c 4 |", slow))
    pages = [page_picture(LINE), page_picture(LINE).rotate(180)]
    pages[0].save(project / "a.tif", save_all=True, append_images=pages[1:])
    fields = {"ocr_engine": "tesseract", "ocr_language": "eng+fra", "min_chunk_tokens": 1}
    outcome = run_ingest("a.tif", **fields)
    assert [(one["reason"], one["row"]["page"]) for one in outcome.rejected] == [("timed_out", 1)]
    assert outcome.documents[0]["text"] == 'The "boiler" holds'


def test_without_tesseract_there_is_a_way_out(
    project: Path, run_ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    tesseract.version.cache_clear()
    page_picture(LINE).save(project / "a.png")
    with pytest.raises(MissingExtraError, match="tesseract") as caught:
        run_ingest("a.png", ocr_engine="tesseract")
    assert "ingest.ocr_engine: rapidocr" in caught.value.hint
