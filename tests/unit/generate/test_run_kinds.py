"""The stage with all kinds, ready-made rows, a judge and paraphrases: nothing lost, any order."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generation_stage import Stage, chunk
from killing import kill
from scribe import Scribe

from potstill.core.events import read_events
from potstill.core.files import read_json, read_records
from potstill.errors import BudgetError, InputError, TeacherError
from potstill.generate import STAGE, GenerateConfig
from potstill.generate.asking import blocks
from potstill.generate.jobs import jobs_of
from potstill.generate.judging import Judgement
from potstill.inference.base import Reply, Request
from potstill.inference.budget import Meter
from potstill.records import Example, Provenance, Turn

KINDS = [
    {"kind": "qa"},
    {"kind": "extractive"},
    {"kind": "conversation", "chunks": 2, "turns": 2},
    {"kind": "multiple_choice"},
    {"kind": "fill_in_the_blank"},
    {"kind": "summary"},
    {"kind": "refusal"},
]
TONES = [{"tone": "formal"}, {"tone": "casual", "teacher": "other", "backend": "fake"}]


def config(**fields: Any) -> GenerateConfig:
    values = {"teacher": "t", "backend": "fake", "kinds": KINDS, **fields}
    return GenerateConfig.model_validate(values)


def ready(number: int) -> Example:
    question = f"What is the colour of flag {number} in Port Annet?"
    return Example(
        id=f"ready{number}",
        turns=(Turn(role="user", content=question), Turn(role="assistant", content="red")),
        question=question,
        answers=("red",),
        provenance=Provenance(document="rows.csv", chunk=""),
    )


class Late(Scribe):
    """Answers all requests, in a random order."""

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        replies = list(super().complete(requests))
        random.Random(5).shuffle(replies)
        yield from replies


def test_all_kinds_of_all_chunks_come_with_ready_rows_first_and_variants_last(
    tmp_path: Path,
) -> None:
    rows = [ready(n) for n in range(3)]
    stage = Stage(tmp_path, [chunk(n) for n in range(6)], rows=rows)
    model = Scribe()
    stage.run(config(paraphrases=TONES, judge="teacher"), model=model)
    examples, summary = stage.examples, read_json(stage.draft.data / "summary.json")
    assert examples[:3] == rows
    assert {one.kind for one in examples} == {str(kind["kind"]) for kind in KINDS}
    variants = [one for one in examples if one.provenance.parent]
    assert examples[-len(variants) :] == variants
    by_id = {one.id: one for one in examples}
    assert len(by_id) == len(examples)
    varied = Counter(by_id[str(one.provenance.parent)].kind for one in variants)
    assert set(varied) == {"qa", "extractive", "multiple_choice", "fill_in_the_blank", "refusal"}
    assert {one.provenance.variant for one in variants} == {"formal", "casual"}
    assert {one.provenance.teacher for one in variants} == {"t", "other"}
    originals = len(examples) - len(variants)
    assert originals == summary["pairs"] + summary["passed_through"]
    assert sum(summary["kinds"].values()) == summary["pairs"]
    for done in summary["paraphrases"]:
        assert done["rows"] == done["variants"] + sum(done["rejected"].values())
    judged = list(read_records(stage.draft.data / "judgements.jsonl", Judgement))
    assert len(judged) == summary["judged"] + len(variants)
    assert {one.id for one in judged} <= set(by_id)


def test_progress_goes_on_from_rows_to_variants_and_from_tone_to_tone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []

    def figures(self: Meter, rows: int, done: float, total: float) -> dict[str, float]:
        seen.append((rows, done))
        assert done <= total
        return {}

    monkeypatch.setattr(Meter, "figures", figures)
    stage = Stage(tmp_path, [chunk(n) for n in range(3)])
    stage.run(config(paraphrases=TONES), model=Scribe())
    rows, done = zip(*seen, strict=True)
    assert list(rows) == sorted(rows)
    assert list(done) == sorted(done)
    assert rows[-1] == len(stage.examples)


def test_what_the_fake_cannot_write_is_said(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [chunk(n) for n in range(3)])
    with pytest.raises(TeacherError) as caught:
        stage.run(config(kinds=[{"kind": "refusal"}]))
    assert "focus, qa and extractive" in caught.value.hint


def test_the_bytes_do_not_depend_on_the_order_of_the_replies(tmp_path: Path) -> None:
    chunks = [chunk(n) for n in range(8)]
    ordered, shuffled = Stage(tmp_path / "a", chunks), Stage(tmp_path / "b", chunks)
    ordered.run(config(paraphrases=TONES, judge="teacher"), model=Scribe())
    shuffled.run(config(paraphrases=TONES, judge="teacher", parallel=3), model=Late())
    assert ordered.digests == shuffled.digests
    assert "judgements.jsonl" in ordered.digests


def test_a_block_never_divides_what_may_not_repeat(tmp_path: Path) -> None:
    focus = config(kinds=[{"kind": "focus"}])
    every = list(jobs_of(focus, 0, [chunk(n) for n in range(9)], 1))
    for size in (1, 2, 5, 7, 100):
        cut = list(blocks(iter(every), 3, size))
        assert [job for block in cut for job in block] == every
        scopes = [{job.scope for job in block} for block in cut]
        assert len(set.union(*scopes)) == sum(map(len, scopes))
        assert all(len(block) >= size for block in cut[1:-1])


def test_every_part_of_a_reply_is_a_row_or_rejected_with_what_was_written(tmp_path: Path) -> None:
    def spoil(text: str, request: Request) -> str:
        rows = json.loads(text)
        rows["pairs"].append({"question": "Where is the gold?", "answer": "In the old mill"})
        rows["pairs"].append({"question": "Why?"})
        return f"```json\n{json.dumps(rows)}\n```"

    stage = Stage(tmp_path, [chunk(n) for n in range(3)])
    stage.run(config(kinds=[{"kind": "qa"}]), model=Scribe(spoil))
    assert len(stage.examples) >= 6
    reasons = Counter(one.reason for one in stage.rejected)
    assert reasons == {"unsupported": 3, "invalid_row": 3}
    assert "old mill" in next(
        one.row["reply"] for one in stage.rejected if one.reason == "unsupported"
    )
    events, _ = read_events(tmp_path / "events.jsonl")
    assert sum(event["kind"] == "rejected" for event in events) == 6
    assert len({one.id for one in stage.rejected}) == 6


def test_a_reply_that_cannot_be_read_is_told_so_and_asked_for_again(tmp_path: Path) -> None:
    def spoil(text: str, request: Request) -> str:
        return text if "cannot be used" in request.messages[-1].content else "Certainly!"

    model = Scribe(spoil)
    stage = Stage(tmp_path / "again", [chunk(1), chunk(2)])
    stage.run(config(kinds=[{"kind": "qa"}]), model=model)
    assert stage.examples
    assert stage.rejected == []
    summary = read_json(stage.draft.data / "summary.json")
    assert summary["failed_attempts"] == {"invalid_reply": 2}
    never = Stage(tmp_path / "never", [chunk(1), chunk(2)])
    with pytest.raises(TeacherError, match="invalid_reply"):
        never.run(config(kinds=[{"kind": "qa"}]), model=Scribe(lambda text, request: "No."))
    assert [one.row["reply"] for one in never.rejected] == ["No.", "No."]


def test_a_useless_teacher_of_whole_chunks_is_told_soon(tmp_path: Path) -> None:
    model = Scribe(lambda text, request: "No.")
    with pytest.raises(TeacherError):
        Stage(tmp_path, [chunk(n) for n in range(500)]).run(
            config(kinds=[{"kind": "qa"}]), model=model
        )
    assert len(model.asked) < 100


def test_a_judge_who_says_no_or_nothing_clear_turns_rows_down(tmp_path: Path) -> None:
    for verdict, reason in (("no", "judged_unsupported"), ("perhaps", "judge_unclear")):
        stage = Stage(tmp_path / verdict, [chunk(1)])
        stage.run(config(kinds=[{"kind": "qa"}], judge="teacher"), model=Scribe(verdict=verdict))
        assert stage.examples == []
        assert {one.reason for one in stage.rejected} == {reason}
        assert stage.rejected[0].row["row"]["question"]


def test_rows_alone_need_no_teacher_and_pass_unchanged(tmp_path: Path) -> None:
    rows = [ready(n) for n in range(5)]
    stage = Stage(tmp_path, [], rows=rows)
    model = Scribe()
    stage.run(config(), model=model)
    assert stage.examples == rows
    assert model.asked == []
    varied = Stage(tmp_path / "varied", [], rows=rows)
    varied.run(config(paraphrases=TONES[:1]), model=model)
    assert varied.examples[:5] == rows
    assert [one.provenance.parent for one in varied.examples[5:]] == [one.id for one in rows]
    with pytest.raises(InputError):
        Stage(tmp_path / "nothing", []).run(config(), model=model)


def test_the_budget_stops_the_run_and_more_of_it_goes_on_where_it_was(tmp_path: Path) -> None:
    chunks = [chunk(n) for n in range(6)]
    whole = Stage(tmp_path / "whole", chunks)
    whole.run(config(paraphrases=TONES), model=Scribe())
    stage, model = Stage(tmp_path / "capped", chunks), Scribe()
    with pytest.raises(BudgetError):
        stage.run(config(paraphrases=TONES, budget={"requests": 20}), model=model)
    assert len(model.asked) == 20
    with pytest.raises(BudgetError):  # 42 for the kinds, so this stops among the variants
        stage.run(config(paraphrases=TONES, budget={"requests": 60}), model=model)
    stage.run(config(paraphrases=TONES), model=model)
    assert stage.digests == whole.digests
    digests = [request.digest("x") for request in model.asked]
    assert len(digests) == len(set(digests))


def test_progress_says_how_fast_and_how_long(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [chunk(n) for n in range(100)])
    stage.run(config(kinds=[{"kind": "qa"}]), model=Scribe(delay=0.005))
    events, _ = read_events(tmp_path / "events.jsonl")
    last = [event for event in events if event["kind"] == "progress"][-1]
    assert last["done"] == last["total"] == 100
    assert last["rows_per_second"] > 0
    assert last["tokens_per_second"] > 0
    assert last["seconds_left"] == 0
    assert any(event.get("seconds_left", 0) > 0 for event in events)


def test_a_plan_counts_requests_of_all_kinds_judges_and_paraphrases(tmp_path: Path) -> None:
    earlier = {"ingest": {"chunks": 10.0, "chunk_tokens": 500.0, "rows": 5.0}}

    def planned(**fields: Any) -> Any:
        return STAGE.estimate(config(**fields), earlier, tmp_path)

    one = planned(kinds=[{"kind": "qa", "per_chunk": 4}])
    assert one["rows"] == 45
    assert one["requests"] == 11
    talk = planned(kinds=[{"kind": "conversation", "chunks": 5}])
    assert talk["rows"] == 7
    judged = planned(kinds=[{"kind": "qa", "per_chunk": 4}], judge="teacher")
    assert judged["requests"] == 51
    varied = planned(kinds=[{"kind": "qa", "per_chunk": 4}], paraphrases=TONES)
    assert varied["rows"] == 135
    assert varied["requests"] == 11 + 99
    fifth = [{"tone": "formal", "share": 0.2}]
    some = planned(kinds=[{"kind": "qa", "per_chunk": 4}], paraphrases=fifth)
    assert (some["rows"], some["requests"]) == (54, 11 + 10)
    assert STAGE.facts(config(paraphrases=TONES), tmp_path) == {
        "teacher": "fake 1",
        "paraphrases.1": "fake 1",
    }


KILLED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from generation_stage import Stage, chunk, config
from killing import noted
from scribe import Scribe

folder = Path(sys.argv[1])
teacher = noted(Scribe, folder / "sent")(delay=0.004)
stage = Stage(folder, [chunk(n) for n in range(4)])
stage.run(config(**json.loads(sys.argv[3])), model=teacher)
"""


def test_killed_at_any_moment_the_result_is_the_same_and_nothing_is_asked_twice(
    tmp_path: Path,
) -> None:
    undisturbed = Stage(tmp_path / "undisturbed", [chunk(n) for n in range(4)])
    fields = {"kinds": KINDS, "paraphrases": TONES, "judge": "teacher"}
    undisturbed.run(config(**fields), model=Scribe())
    folder = tmp_path / "killed"
    folder.mkdir()
    helpers = str(Path(__file__).parents[2] / "support")
    command = [sys.executable, "-c", KILLED, str(folder), helpers, json.dumps(fields)]
    kills = kill(command, folder / "sent", seed=7, times=6, within=0.12)
    assert kills >= 2
    killed = Stage(folder, [chunk(n) for n in range(4)])
    assert killed.digests == undisturbed.digests
    asked = (folder / "sent").read_text().split()
    # Only what was on its way when the process died may be asked for again.
    assert len(asked) - len(set(asked)) <= kills
