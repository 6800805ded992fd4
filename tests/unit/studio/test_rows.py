"""Rows are found by number, kind and words; a row shows its passage with the answer marked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from studio_runs import PASSAGE, browser, make_run, rejected, row

from potstill.core.files import file_digest
from potstill.errors import StoreError
from potstill.records import Chunk, Provenance, Rejected, Span
from potstill.sample import sample_path
from potstill.studio.data_page import marked
from potstill.studio.rows import REASON, RowFiles
from potstill.studio.set_aside import as_row, named


def lowered(text: str, word: str) -> str:
    """Signs such as the Kelvin sign, whose small letter is a plain k, are letters of their own."""
    plain = "".join(one.lower() if one.isascii() else one for one in text)
    return plain if word.isascii() else text.lower()


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(TEXT, st.sampled_from(["qa", "summary"])), min_size=1, max_size=12),
    TEXT,
    st.sampled_from(["", "qa"]),
)
def test_rows_are_found_as_a_plain_search_finds_them(
    tmp_path: Path, texts: list[tuple[str, str]], wanted: str, kind: str
) -> None:
    rows = [row(n, question=text, kind=of) for n, (text, of) in enumerate(texts)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in rows), "utf-8")
    file = RowFiles().open(path)
    read = [value for _, value in file.lines(list(range(len(file))))]
    assert read == [json.loads(one.model_dump_json()) for one in rows]
    plain = [
        number
        for number, one in enumerate(rows)
        if kind in ("", one.kind)
        and all(
            json.dumps(word, ensure_ascii=False)[1:-1] in lowered(one.model_dump_json(), word)
            for word in wanted.lower().split()
        )
    ]
    assert file.matching(kind, wanted) == plain
    found = file.find("row-0")
    assert found is not None
    assert found["question"] == texts[0][0]
    assert file.find("nobody") is None


def test_rejected_rows_are_counted_by_their_reason_not_by_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    sly = rejected(1).model_copy(update={"detail": '"reason":"trick"', "reason": "markup"})
    path.write_text(f"{sly.model_dump_json()}\n\n{rejected(2).model_dump_json()}\n", "utf-8")
    file = RowFiles().open(path, REASON)
    assert file.words == ["markup", "near_duplicate"]


def test_a_damaged_or_vanished_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n")
    file = RowFiles().open(path)
    with pytest.raises(StoreError, match="line 1 is damaged"):
        list(file.lines([0]))
    path.unlink()
    with pytest.raises(StoreError, match="Cannot read"):
        list(file.lines([0]))


def test_the_sentence_of_the_answer_is_marked() -> None:
    pieces = marked(PASSAGE, {"start": 52, "end": 56}, [])
    assert ("answer", "Tove") in pieces
    assert "".join(text for how, text in pieces if how != "plain") == "It is then graded by Tove."
    assert "".join(text for _, text in pieces) == PASSAGE
    assert marked(PASSAGE, None, ["tove"]) == pieces
    assert marked(PASSAGE, {"start": 50, "end": 9999}, ["absent"]) == [("plain", PASSAGE)]


@given(st.text(max_size=60), st.integers(-5, 70), st.integers(-5, 70), st.text(max_size=3))
def test_marking_never_changes_the_text(text: str, start: int, end: int, answer: str) -> None:
    pieces = marked(text, {"start": start, "end": end}, [answer])
    assert "".join(part for _, part in pieces) == text


def test_the_page_finds_and_shows_rows(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    page = client.get("/runs/made/data").text
    assert "4 rows" in page
    assert "near duplicate" in page
    assert "1 row<" in client.get("/runs/made/data?split=train&word=extractive").text
    assert "1 row<" in client.get("/runs/made/data?q=GRADES+(3)").text
    assert "No row fits" in client.get("/runs/made/data?q=nowhere").text
    shown = client.get("/runs/made/data/train/0").text
    assert "<mark>Tove</mark>" in shown
    assert "notes.md, page 3" in shown
    aside = client.get("/runs/made/data/curate/0").text
    assert "nearly the same words as an earlier row" in aside
    assert client.get("/runs/made/data/train/9").status_code == 404
    assert client.get("/runs/made/data/../../run.json").status_code == 404
    for number in ("0", "-1", "x", "99999999999999"):
        assert client.get(f"/runs/made/data?page={number}").status_code == 200


def test_a_row_from_a_pdf_is_shown_on_its_page(tmp_path: Path) -> None:
    pdf = tmp_path / "documents" / "handbook.pdf"
    pdf.parent.mkdir()
    shutil.copy(sample_path("handbook.pdf"), pdf)
    text = "Petrel 38 m 54 58 °C 3.4 m/s 6 h 45 min"
    chunk = Chunk(
        id="c", document=file_digest(pdf)[:16], source="documents/handbook.pdf", start=0,
        end=len(text), pages=(3,), tokens=20, text=text,
    )  # fmt: skip
    origin = Provenance(document=chunk.document, chunk="c", span=Span(start=15, end=20))
    rows = [row(1, answers=("58 °C",), provenance=origin)]
    make_run(tmp_path, files={"ingest": {"chunks.jsonl": [chunk]}, "curate": {"train.jsonl": rows}})
    client, _ = browser(tmp_path)
    place = "/runs/made/data/train/0/page"
    assert f'src="{place}"' in client.get("/runs/made/data/train/0").text
    shown = client.get(place)
    assert shown.headers["content-type"] == "image/png"
    assert shown.content.startswith(b"\x89PNG")
    assert len(client.get(f"{place}?whole=1").content) > len(shown.content)
    with pdf.open("ab") as file:
        file.write(b"\n")
    changed = client.get(place)
    assert changed.status_code == 404
    assert "has changed since" in changed.text
    pdf.unlink()
    assert client.get(place).status_code == 404
    assert "<img" not in client.get("/runs/made/data/train/0").text


def test_a_row_from_another_kind_of_file_has_no_page(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    assert "<img" not in client.get("/runs/made/data/train/0").text
    assert client.get("/runs/made/data/train/0/page").status_code == 404


LOST: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {"chunk": "c", "focus": PASSAGE, "answer": "Tove", "reply": '{"question": "Who grades?"}'},
        ("<dt>Question</dt><dd>Who grades?</dd>", "<dd>Tove</dd>", "Asked about", "notes.md, page"),
    ),
    (
        {"kind": "qa", "chunks": ["c"], "reply": "no JSON at"},
        ("<dt>The teacher wrote</dt><dd>no JSON at</dd>", "notes.md, page"),
    ),
    (
        {"row": row(5).model_dump(mode="json"), "reply": "{}"},
        ("<dt>Question</dt>", "<mark>Tove</mark>"),
    ),
]


@pytest.mark.parametrize(("held", "shown"), LOST)
def test_what_generation_lost_is_shown_as_a_row(
    tmp_path: Path, held: dict[str, Any], shown: tuple[str, ...]
) -> None:
    chunk = Chunk(
        id="c", document="d", source="notes.md", start=0, end=len(PASSAGE), pages=(3,),
        tokens=20, text=PASSAGE,
    )  # fmt: skip
    lost = Rejected(id="lost", stage="generate", reason="empty_answer", row=held)
    files = {
        "ingest": {"chunks.jsonl": [chunk]},
        "generate": {"rejected.jsonl": [lost]},
        "curate": {"train.jsonl": [row(1)]},
    }
    make_run(tmp_path, files=files)
    client, _ = browser(tmp_path)
    detail = client.get("/runs/made/data/generate/0").text
    for words in shown:
        assert words in detail
    page = client.get("/runs/made/data?split=rejected").text
    assert '<span class="q">lost</span>' not in page


@given(st.recursive(st.none() | st.text(max_size=4), lambda one: st.lists(one, max_size=3)))
def test_a_rejected_thing_of_any_form_has_a_row(value: Any) -> None:
    names = ("row", "reply", "chunk", "chunks", "answer", "question", "answers", "provenance")
    for name in names:
        held = as_row({name: value, "focus": "A sentence."})
        assert named(held)


def test_hostile_rows_stay_text(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    bad = row(1, question=evil, answers=(evil,), reasoning=evil)
    out = rejected(2).model_copy(update={"detail": evil, "row": {"source": evil, evil: evil}})
    files = {"curate": {"train.jsonl": [bad], "rejected.jsonl": [out]}}
    make_run(tmp_path, files=files, description=evil, teacher=evil)
    client, _ = browser(tmp_path)
    paths = ["/", "/runs/made", "/runs/made/data", "/runs/made/data/train/0",
             "/runs/made/data/curate/0", f"/runs/made/data?q={evil}&split={evil}&word={evil}",
             f"/runs/{evil}", f"/new?from={evil}"]  # fmt: skip
    for path in paths:
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "<img" not in text


def test_before_rows_and_after_they_are_gone_the_page_says_so(tmp_path: Path) -> None:
    import shutil

    make_run(tmp_path, "early", files={})
    make_run(tmp_path, "late")
    client, _ = browser(tmp_path)
    assert "as soon as the stage curate" in client.get("/runs/early/data").text
    shutil.rmtree(tmp_path / "store")
    gone = client.get("/runs/late/data").text
    assert "is gone from" in gone
    assert "potstill run" in gone
