"""A variant asks the same in other words, or is refused; of its row only the question changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from scribe import Scribe

from potstill.core.events import Emitter
from potstill.core.stage import Context
from potstill.errors import TeacherError
from potstill.generate.config import GenerateConfig
from potstill.generate.paraphrase_config import ParaphraseConfig
from potstill.generate.paraphrases import Paraphrasing, can_vary, check_meaning, is_asked_for
from potstill.generate.unusable import UnusableError
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.budget import Meter
from potstill.inference.fake import FakeModel
from potstill.inference.replay import ReplayModel
from potstill.records import Example, Provenance, Span, Turn


def row(question: str, answer: str = "46 litres", **fields: Any) -> Example:
    turns = (
        Turn(role="user", content=f"Passage: {question} is asked.\n\nQuestion: {question}\nA. x"),
        Turn(role="assistant", content=answer),
    )
    provenance = Provenance(document="d", chunk="c", span=Span(start=1, end=3), teacher="old")
    values = {"id": question, "kind": "qa", "turns": turns, "answers": (answer,)}
    return Example(**{**values, "question": question, "provenance": provenance, **fields})


class Says(FakeModel):
    """Gives these replies, one after another; the last again and again."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts, self.asked = list(texts), list[Request]()

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        for position, request in enumerate(requests):
            self.asked.append(request)
            text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
            yield position, Reply(text, "stop", 1, 1, 0.0)


def said(question: str) -> str:
    return json.dumps({"question": question})


def vary(
    folder: Path, rows: list[Example], model: TextModel, **fields: Any
) -> tuple[list[Example], Paraphrasing]:
    config = GenerateConfig.model_validate(
        {"teacher": "t", "backend": "fake", "paraphrases": [{"tone": "formal"}], **fields}
    )
    context = Context(folder, folder / "cache", 17, 1, Emitter(folder / "events.jsonl"))
    teacher = ReplayModel(folder / "requests", "fake", lambda: nullcontext(model))
    with closing(teacher):
        work = Paraphrasing(config, config.paraphrases[0], teacher, context, len(rows), Meter())
        return list(work.variants(iter(rows), {})), work


OLD = "How much does the lamp of Skerry Point burn?"
NEW = "What amount of oil is burnt by Skerry Point's lamp?"


def test_only_the_question_of_a_variant_is_new(tmp_path: Path) -> None:
    parent = row(OLD)
    ((variant,), work) = vary(tmp_path, [parent], Says(said(NEW)))
    assert variant.question == NEW
    assert variant.turns[0].content == f"Passage: {OLD} is asked.\n\nQuestion: {NEW}\nA. x"
    assert variant.turns[1:] == parent.turns[1:]
    assert variant.provenance.parent == parent.id
    assert variant.provenance.variant == "formal"
    assert variant.provenance.teacher == "t"
    assert variant.provenance.prompt == "paraphrase@1"
    assert variant.provenance.span == parent.provenance.span
    assert variant.answers == parent.answers
    assert variant.id != parent.id
    assert work.made == 1


def test_a_failed_variant_is_asked_for_again_and_told_why_then_rejected(tmp_path: Path) -> None:
    model = Says(said(OLD), "Sorry?", said(NEW))
    ((variant,), _) = vary(tmp_path / "a", [row(OLD)], model)
    assert variant.question == NEW
    assert "same words" in model.asked[1].messages[-1].content
    assert "no JSON" in model.asked[2].messages[-1].content
    (variants, work) = vary(tmp_path / "b", [row(OLD)], Says(said("Who is it then?")))
    assert variants == []
    ((rejected,)) = work.rejected
    assert rejected.reason == "changed_name"
    assert rejected.row["parent"] == OLD
    assert rejected.row["reply"] == said("Who is it then?")


def test_a_teacher_as_judge_may_turn_a_variant_down(tmp_path: Path) -> None:
    yes = json.dumps({"reason": "Both ask it.", "supported": "yes"})
    no = json.dumps({"reason": "The second asks when.", "supported": "no"})
    (variants, work) = vary(tmp_path / "a", [row(OLD)], Says(said(NEW), yes), judge="teacher")
    assert len(variants) == 1
    assert work.judgements[0].reason == "Both ask it."
    assert work.judgements[0].about == "paraphrase"
    (variants, work) = vary(tmp_path / "b", [row(OLD)], Says(said(NEW), no), judge="teacher")
    assert variants == []
    assert [one.reason for one in work.rejected] == ["judged_other_question"]
    assert work.rejected[0].detail == "The second asks when."


def test_a_good_teacher_loses_nothing(tmp_path: Path) -> None:
    rows = [row(f"How much does lamp {n} of Skerry Point burn?") for n in range(100)]
    variants, work = vary(tmp_path, rows, Scribe())
    assert len(variants) == 100
    assert work.rejected == []
    assert [one.provenance.parent for one in variants] == [one.id for one in rows]


def test_a_useless_paraphraser_is_one_error_before_all_rows_are_tried(tmp_path: Path) -> None:
    rows = [row(f"How much does lamp {n} of Skerry Point burn?") for n in range(400)]
    model = Says("Sorry.")
    with pytest.raises(TeacherError, match=r"no usable paraphrase \(formal\).*invalid_reply 64"):
        vary(tmp_path, rows, model, attempts=4)
    assert len(model.asked) == 256


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (OLD, "how much does the lamp of Skerry Point burn", "same_words"),
        (OLD, "Say how much the lamp of Skerry Point burns.", "not_a_question"),
        ("How far is it in 1,200 days?", "How far is it in 120 days?", "changed_number"),
        ("How far is it in 1,200 days?", "In 1200 days, how far is it?", ""),
        (OLD, "How much does the lamp of Port Annet burn?", "changed_name"),
        (OLD, "Does the lamp of Skerry Point burn 46 litres or more?", "changed_number"),
        (OLD, "Please, " + "do tell me, " * 20 + "what Skerry Point's lamp burns?",
         "changed_length"),
        ("How does the lamp burn?", "Which colour are ships?", "other_topic"),
        (OLD, NEW, ""),
    ],
)  # fmt: skip
def test_a_changed_meaning_has_a_reason(old: str, new: str, reason: str) -> None:
    if not reason:
        check_meaning(row(old), new)
        return
    with pytest.raises(UnusableError) as caught:
        check_meaning(row(old), new)
    assert caught.value.reason == reason


def test_the_answer_may_not_slip_in() -> None:
    parent = row("Who keeps the lamp?", "Maud Tarrant")
    with pytest.raises(UnusableError, match="answer_leaked"):
        check_meaning(parent, "Is it Maud Tarrant who keeps the lamp?")


def test_choices_inside_a_question_and_blanks_stay() -> None:
    parent = row("What burns?\nA) oil\nB) coal", "oil", options=("oil", "coal"))
    check_meaning(parent, "Which of these burns?\nA) oil\nB) coal")
    with pytest.raises(UnusableError, match="changed_options"):
        check_meaning(parent, "Which of these is it that burns?\nA) oil")
    blank = row("The lamp burns ____ of oil.")
    check_meaning(blank, "Of oil, the lamp burns ____.")
    with pytest.raises(UnusableError, match="changed_blank"):
        check_meaning(blank, "The lamp burns a lot of oil.")


def test_german_nouns_are_no_names() -> None:
    parent = row("Wie viel Öl verbraucht die Lampe im Monat?")
    new = "Welche Menge an Brennstoff verbraucht die Leuchte monatlich?"
    check_meaning(parent, new, "de")
    with pytest.raises(UnusableError, match="changed_name"):
        check_meaning(parent, new, "")


def test_rows_without_a_question_of_their_own_are_left_alone() -> None:
    parent = row(OLD)
    assert can_vary(parent)
    assert not can_vary(parent.model_copy(update={"kind": "summary"}))
    assert not can_vary(parent.model_copy(update={"question": "Not in its turn?"}))
    of = parent.provenance.model_copy(update={"parent": "p"})
    assert not can_vary(parent.model_copy(update={"provenance": of}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": {"ask": "Again!"}}, "question"),
        ({"prompt": {"ask": "{question} {passage}"}}, "passage"),
        ({"endpoint": {"base_url": "http://127.0.0.1:1/v1"}}, "without a teacher"),
        ({"teacher": "openai:m"}, "behind an address"),
        ({"tone": ""}, "at least 1"),
    ],
)
def test_paraphrases_that_cannot_work_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GenerateConfig.model_validate({"teacher": "t", "paraphrases": [fields]})


def test_a_share_of_the_rows_is_drawn_by_lot_each_by_itself() -> None:
    one = ParaphraseConfig(tone="casual", share=0.25)
    rows = [row(f"How much does boiler {number} hold?") for number in range(800)]
    chosen = {each.id for each in rows if is_asked_for(each, one, 17)}
    assert 150 < len(chosen) < 250
    assert chosen == {each.id for each in reversed(rows) if is_asked_for(each, one, 17)}
    assert chosen != {each.id for each in rows if is_asked_for(each, one, 18)}
    other = one.model_copy(update={"tone": "formal"})
    assert chosen != {each.id for each in rows if is_asked_for(each, other, 17)}
    larger = one.model_copy(update={"share": 0.5})
    assert chosen < {each.id for each in rows if is_asked_for(each, larger, 17)}
    whole = one.model_copy(update={"share": 1.0})
    assert all(is_asked_for(each, whole, 17) for each in rows)
    assert not is_asked_for(row("", kind="conversation"), whole, 17)
