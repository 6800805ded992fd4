"""What a person decides about rows holds, and what protects the measurement holds above it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.curate import CurateConfig
from potstill.curate.curation import Curated, Material, curate
from potstill.curate.edits import Edit, edited, read_edits
from potstill.errors import InputError
from potstill.records import Chunk, Example, Provenance, Span, Turn

WORDS = "Aker Brand Celle Dorn Eller Farn Gard Holm Isen Jarl Karst Lind".split()


def passage(number: int) -> Chunk:
    text = f"In {WORDS[number]} the mill of {WORDS[number - 1]} is kept by warden {WORDS[-number]}."
    return Chunk(
        id=f"c{number}", document="d", source="notes.md", start=200 * number,
        end=200 * number + len(text), tokens=20, text=text,
    )  # fmt: skip


def row(number: int, **changes: Any) -> Example:
    chunk = passage(number)
    question = f"Who keeps the mill of {WORDS[number - 1]}?"
    answer = f"warden {WORDS[-number]}"
    start = chunk.text.index(answer)
    fields: dict[str, Any] = {
        "id": f"r{number}",
        "turns": (
            Turn(role="system", content="Be brief."),
            Turn(role="user", content=f"{chunk.text}\n\nQ: {question} Answer:"),
            Turn(role="assistant", content=answer),
        ),
        "question": question,
        "answers": (answer,),
        "provenance": Provenance(
            document="d", chunk=chunk.id, span=Span(start=start, end=start + len(answer))
        ),
    }
    return Example(**(fields | changes))


def curated(*edits: Edit, rows: list[Example] | None = None, **config: Any) -> Curated:
    chunks = [passage(number) for number in range(1, 12)]
    material = Material(
        chunks, rows or [row(n) for n in range(1, 11)], edits={one.id: one for one in edits}
    )
    return curate(material, CurateConfig(split_by="chunk", **config), seed=3)


def edit(name: str, action: str, **fields: str) -> Edit:
    return Edit.model_validate({"id": name, "action": action, "fields": fields})


def places(done: Curated) -> dict[str, str]:
    """Row -> its split, or why it is rejected."""
    kept = {one.id: split for split, rows in done.kept.items() for one in rows}
    return kept | {one.id: one.reason for one in done.rejected}


PLAIN = places(curated())
TRAIN = [name for name, split in PLAIN.items() if split == "train"]
TEST = [name for name, split in PLAIN.items() if split == "test"]


def found(done: Curated, name: str) -> Example:
    return next(one for rows in done.kept.values() for one in rows if one.id == name)


def test_without_edits_nothing_is_decided() -> None:
    assert set(PLAIN.values()) == {"train", "validation", "test"}
    assert curated().by_hand == {}


def test_a_rejected_row_is_set_aside_and_moves_no_other() -> None:
    done = curated(edit(TEST[0], "reject", note="two right answers"))
    assert places(done) == PLAIN | {TEST[0]: "rejected_by_hand"}
    assert done.rejected[0].detail == "two right answers"
    assert done.by_hand == {"reject": 1}


def test_an_edited_row_says_something_else_and_keeps_its_split_and_passage() -> None:
    name = TRAIN[0]
    before = found(curated(), name)
    who = passage(int(name[1:])).text.split()[1]  # stands in the passage
    done = curated(edit(name, "edit", question="Where is it kept?", answer=who))
    after = found(done, name)
    assert places(done) == PLAIN
    assert after.turns[1].content == before.turns[1].content.replace(
        before.question, "Where is it kept?"
    )
    assert (after.turns[2].content, after.answers) == (who, (who,))
    span = after.provenance.span
    assert span is not None
    assert passage(int(name[1:])).text[span.start : span.end] == who


def test_only_the_answer_changes_where_it_stands_in_a_longer_reply() -> None:
    said = Turn(role="assistant", content="Reason: x. Answer: warden Lind.")
    one = row(1, turns=(Turn(role="user", content=row(1).question), said))
    made = edited(one, edit("r1", "edit", answer="nobody").fields, None)
    assert made is not None
    assert made.turns[1].content == "Reason: x. Answer: nobody."
    assert made.provenance.span is None


def test_variants_of_an_edited_row_go_but_not_those_that_a_person_kept() -> None:
    parent = TRAIN[0]
    base = row(int(parent[1:]))
    rows = [row(n) for n in range(1, 11)]
    for name, who in (("v1", "looks after"), ("v2", "has charge of")):
        asked = base.question.replace("keeps", who)
        turns = (*base.turns[:1], Turn(role="user", content=asked), base.turns[2])
        rows.append(
            base.model_copy(
                update={
                    "id": name,
                    "question": asked,
                    "turns": turns,
                    "provenance": base.provenance.model_copy(update={"parent": parent}),
                }
            )
        )
    assert {"v1", "v2"} <= {
        name for name, at in places(curated(rows=rows)).items() if at == "train"
    }
    done = places(curated(edit(parent, "edit", answer="warden"), edit("v2", "accept"), rows=rows))
    assert (done["v1"], done["v2"], done[parent]) == ("parent_edited", "train", "train")


def test_an_accepted_row_is_not_judged_by_its_form_and_may_repeat_its_own_split() -> None:
    one, other = TRAIN[:2]
    rows = [
        row(n) if f"r{n}" != one else row(n, question="Warden?", turns=(
            Turn(role="user", content="Warden?"), row(n).turns[2]))
        for n in range(1, 11)
    ]  # fmt: skip
    twin = row(int(other[1:]), id="twin")
    assert places(curated(rows=[*rows, twin]))[one] == "question_too_short"
    assert places(curated(rows=[*rows, twin]))["twin"] == "exact_duplicate"
    done = places(curated(edit(one, "accept"), edit("twin", "accept"), rows=[*rows, twin]))
    assert done[one] == done["twin"] == "train"


def test_nothing_that_a_person_says_lets_a_test_row_be_learned() -> None:
    asked = row(int(TEST[0][1:]))
    copy = edit("mine", "add", question=asked.question, answer=asked.answers[0])
    done = curated(copy, edit(TRAIN[0], "edit", question=asked.question, answer=asked.answers[0]))
    at = places(done)
    assert at["mine"] == at[TRAIN[0]] == "repeats_test"
    assert at[TEST[0]] == "test"
    assert done.by_hand == {"add": 1, "edit": 1, "kept_out": 2}
    assert len(done.rejected) + sum(map(len, done.kept.values())) == 10 + done.added.total()


@pytest.mark.parametrize("held", [TRAIN[0], TEST[0]])
def test_an_added_row_is_asked_as_the_others_and_goes_where_its_passage_went(held: str) -> None:
    chunk = passage(int(held[1:]))
    done = curated(
        edit("mine", "add", question="Of which mill?", answer="the mill", chunk=chunk.id)
    )
    assert places(done)["mine"] == PLAIN[held]
    made = found(done, "mine")
    assert [one.content for one in made.turns] == [
        "Be brief.", f"{chunk.text}\n\nQ: Of which mill? Answer:", "the mill",
    ]  # fmt: skip
    assert made.provenance.prompt == "by-hand@1"
    assert made.provenance.span is not None
    assert {name: at for name, at in places(done).items() if name != "mine"} == PLAIN


def test_a_passage_that_reaches_into_the_test_split_gives_no_row() -> None:
    own = [passage(n) for n in range(1, 11)]
    over = [
        one.model_copy(update={"id": f"over {one.id}", "start": one.start + 5, "end": one.end + 5})
        for one in own
    ]
    edits = {
        one.id: edit(one.id, "add", question="What is kept there?", answer="mill", chunk=one.id)
        for one in over
    }
    material = Material([*own, *over], [row(n) for n in range(1, 11)], edits=edits)
    done = places(curate(material, CurateConfig(split_by="chunk"), seed=3))
    asked = {name: at for name, at in done.items() if name.startswith("r")}
    assert set(asked.values()) == {"train", "validation", "test"}
    for name, at in asked.items():
        expected = "train" if at == "train" else "overlaps_other_split"
        assert done[f"over c{name[1:]}"] == expected


def test_what_cannot_be_done_is_counted() -> None:
    done = curated(
        edit("gone", "reject"),
        edit("mine", "add", question="Who is it then?", answer="warden", chunk="nowhere"),
    )
    assert done.by_hand == {"unknown": 1, "add": 1, "kept_out": 1}
    assert places(done)["mine"] == "no_chunk"


def test_personal_data_of_a_row_by_hand_is_masked_too() -> None:
    mine = edit("mine", "add", question="Whom does one write to?", answer="ask a.b@example.org now")
    made = found(curated(mine, personal_data="mask"), "mine")
    assert made.answers == ("ask [EMAIL] now",)


def test_the_file_is_read_with_the_last_word_on_each_row(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    assert read_edits(path) == {}
    path.write_text('{"id":"a","action":"reject"}\n{"id":"a","action":"accept"}\n')
    assert read_edits(path)["a"].action == "accept"
    path.write_text('{"id":"a","action":"burn"}\n')
    with pytest.raises(InputError):
        read_edits(path)
    with pytest.raises(ValidationError, match="needs a question"):
        edit("a", "edit", note="x")
    with pytest.raises(ValidationError, match="decided about before"):
        CurateConfig(prepared="p", edits="e.jsonl")
