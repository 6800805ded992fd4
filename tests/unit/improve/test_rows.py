"""The rows of an improvement: what is replayed, what is the target, what is held apart."""

from __future__ import annotations

from pathlib import Path

from potstill.curate.config import CurateConfig
from potstill.curate.prepared import (
    FEEDBACK,
    Material,
    Prepared,
    curate_prepared,
    read_prepared,
)
from potstill.improve.candidates import Candidate, Gathered
from potstill.improve.config import ImproveConfig
from potstill.improve.rows import mix, write
from potstill.records import Chunk, Example, Provenance, Turn

SEED = 17
CONFIG = ImproveConfig(replay=2.0)


def example(name: str, question: str, answer: str, chunk: str = "", prompt: str = "p@1") -> Example:
    return Example(
        id=name,
        turns=(Turn(role="user", content=question), Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,),
        provenance=Provenance(document="d", chunk=chunk, prompt=prompt),
    )


def candidate(number: int, chunk: str = "new") -> Candidate:
    made = example(f"f{number}", f"Where is lamp {number} kept?", f"shed {number}", chunk, FEEDBACK)
    passage = Chunk(id=chunk, document="d", source="s", start=0, end=9, tokens=2, text="the sheds")
    return Candidate(f"fb-{number}", made, passage)


def old_rows() -> dict[str, list[Example]]:
    return {
        "train": [example(f"t{n}", f"What is part {n} for?", f"use {n}", "c") for n in range(60)],
        "validation": [example(f"v{n}", f"Why is valve {n} shut?", f"fault {n}") for n in range(4)],
        "test": [example(f"e{n}", f"Who keeps key {n} now?", f"keeper {n}") for n in range(5)],
    }


def gathered(count: int = 20) -> Gathered:
    return Gathered(tuple(candidate(n) for n in range(count)), {"not_accepted": 3})


def test_old_test_rows_stay_and_the_target_is_what_no_version_was_judged_by() -> None:
    old = old_rows()
    made = mix(old, gathered(), {"c"}, (), CONFIG, SEED)
    feedback = made.about["feedback"]
    assert made.rows["test"][:5] == old["test"]
    assert made.rows["validation"][:4] == old["validation"]
    assert len(made.target) == len(feedback["test"]) >= 2
    assert made.about["replayed"] == 2 * len(feedback["train"])
    assert [one.id for one in made.contexts] == ["new"]
    ids = [row.id for rows in made.rows.values() for row in rows]
    assert len(ids) == len(set(ids))

    more = mix(old, gathered(40), {"c", "new"}, made.about["held_out"], CONFIG, SEED)
    assert set(made.about["held_out"]) < set(more.about["held_out"])
    assert not set(made.target) & set(more.target)
    assert more.contexts == []
    assert mix(old, gathered(), {"c"}, (), CONFIG, SEED) == made


def test_an_old_row_that_a_candidate_corrects_is_not_replayed() -> None:
    old = old_rows()
    corrected = example("f1", "what is PART 7 for", "something else", "c", FEEDBACK)
    found = Gathered((Candidate("fb-1", corrected), *gathered().candidates), {})
    made = mix(old, found, {"c"}, (), ImproveConfig(replay=100), SEED)
    assert made.about["superseded"] == 1
    assert "t7" not in {row.id for row in made.rows["train"]}
    assert made.about["replayed"] == 59


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = mix(old_rows(), gathered(), {"c"}, (), CONFIG, SEED)
    write(made, tmp_path / "runs" / "x-2" / "improve")
    write(made, tmp_path / "runs" / "x-2" / "improve")  # over what was there
    found = read_prepared(CurateConfig(prepared="runs/x-2/improve"), tmp_path)
    assert found.rows == made.rows
    assert found.contexts == made.contexts


def curated(
    rows: dict[str, list[Example]], **more: object
) -> tuple[dict[str, list[str]], dict[str, str]]:
    config = CurateConfig.model_validate({"prepared": "x"} | more)
    passage = Chunk(id="c", document="d", source="s", start=0, end=9, tokens=2, text="the parts")
    done = curate_prepared(Prepared(rows, []), Material([passage], []), config)  # type: ignore[arg-type]
    kept = {split: [row.id for row in some] for split, some in done.kept.items()}
    return kept, {one.id: one.reason for one in done.rejected}


def test_nothing_that_is_learned_tells_what_is_tested() -> None:
    rows = old_rows()
    rows["test"].append(
        example("x1", "How heavy is the anchor of the tug?", "9 tons", "c", FEEDBACK)
    )
    rows["train"] += [
        example("a", "how heavy is the anchor of the tug", "10 tons", "c", FEEDBACK),
        example("b", "How heavy is the tug's anchor?", "9 tons", "c"),
        example("c", "Who keeps key 3 now?", "somebody", "", FEEDBACK),
        example("d", "Where does the tug lie in winter?", "in the inner dock", "c", FEEDBACK),
    ]
    kept, rejected = curated(rows)
    assert rejected == {"a": "contaminated", "b": "contaminated", "c": "contaminated"}
    assert kept["test"] == [row.id for row in rows["test"]]
    assert "d" in kept["train"]
    assert {f"t{n}" for n in range(60)} <= set(kept["train"])


def test_a_conversation_that_asks_on_its_way_what_is_tested_is_left_out() -> None:
    rows = old_rows()
    held = "How heavy is the anchor of the tug?"
    rows["test"].append(example("x1", held, "9 tons", "c", FEEDBACK))

    def talk(name: str, first: str, question: str, chunk: str) -> Example:
        last = example(name, question, f"the {name}", chunk)
        before = (
            Turn(role="user", content=f"Passage: the parts\n\nQuestion: {first}\nAnswer:"),
            Turn(role="assistant", content="9 tons"),
        )
        return last.model_copy(update={"turns": (*before, *last.turns)})

    rows["train"] += [
        talk("told", "how HEAVY is the anchor of the tug", "And who paints the funnel?", "c"),
        talk("else", "Who welds the rudder?", "Which rope is longest?", "c"),
        talk("there", held, "Which bell rings first?", "another"),  # it may mean another tug
    ]
    kept, rejected = curated(rows)
    assert rejected == {"told": "contaminated"}
    assert {"else", "there"} <= {*kept["train"]}


def test_feedback_is_looked_through_and_its_form_is_not_judged() -> None:
    rows = old_rows()
    rows["train"] += [
        example("short", "Anchor weight", "9 tons", "c", FEEDBACK),
        example("script", "Is it <script>alert(1)</script> so?", "no", "c", FEEDBACK),
        example("lost", "How heavy is it really?", "9 tons", "nowhere", FEEDBACK),
        example("mail", "Whom do I ask about docks?", "anna@example.org", "c", FEEDBACK),
        example("empty", "How heavy is the tug then?", "...", "c", FEEDBACK),
    ]
    kept, rejected = curated(rows, personal_data="mask")
    assert rejected == {
        "script": "unsafe_markup",
        "lost": "no_chunk",
        "mail": "answer_is_personal_data",
        "empty": "empty_answer",
    }
    assert "short" in kept["train"]
