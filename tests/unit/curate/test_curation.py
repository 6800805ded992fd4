"""Rows on their way through curation: none is lost, none leaks, and each step does what it says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from potstill.curate import CurateConfig
from potstill.curate.curation import Curated, Material, curate
from potstill.curate.decontaminate import Asked, Evaluation, read_evaluation
from potstill.curate.dedup import Repeat
from potstill.curate.filters import Surroundings, judge
from potstill.curate.language import sure_language
from potstill.curate.semantic import repeats_of
from potstill.curate.split import split_rows
from potstill.errors import InputError
from potstill.records import Chunk, Example, Provenance, Turn

THINGS = "kiln pump crane lock turbine mill press lamp ferry bridge drill loom".split()
PLACES = "Brannoch Dunford Garley Harwick Kilmoor Lorton Marby Norholm Pengate Rosthorpe".split()


def row(
    question: str,
    answer: str,
    name: str,
    *,
    chunk: str = "",
    document: str = "rows.csv",
    parent: str | None = None,
    variant: str = "",
    label: str = "",
    kind: str = "qa",
    teacher: str = "",
    options: tuple[str, ...] = (),
) -> Example:
    return Example(
        id=name,
        kind=kind,
        turns=(Turn(role="user", content=question), Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,),
        options=options,
        label=label,
        provenance=Provenance(
            document=document, chunk=chunk, parent=parent, variant=variant, teacher=teacher
        ),
    )


def facts(count: int = 60) -> list[Example]:
    """Rows without a passage, each another fact."""
    return [
        row(
            f"Who keeps the {THINGS[n % 12]} of {PLACES[n // 12 % 10]}?",
            f"warden {chr(65 + n % 26)}{chr(97 + n // 26)}rtsen",
            f"r{n}",
        )
        for n in range(count)
    ]


def ids(done: Curated) -> Counter[str]:
    kept = [one.id for rows in done.kept.values() for one in rows]
    return Counter(kept + [one.id for one in done.rejected])


def reasons(done: Curated) -> dict[str, str]:
    return {one.id: one.reason for one in done.rejected}


def test_rows_without_passage_are_dealt_by_question_seventy_fifteen_fifteen() -> None:
    rows = facts(100)
    done = curate(Material([], rows), CurateConfig(), 3)
    assert {split: len(kept) for split, kept in done.kept.items()} == {
        "train": 70,
        "validation": 15,
        "test": 15,
    }
    assert ids(done) == Counter(one.id for one in rows)


def test_documents_stay_whole_where_there_are_many() -> None:
    rows = [
        one.model_copy(
            update={"provenance": one.provenance.model_copy(update={"document": f"d{n % 12}"})}
        )
        for n, one in enumerate(facts(96))
    ]
    done = curate(Material([], rows), CurateConfig(), 3)
    homes = {split: {one.provenance.document for one in kept} for split, kept in done.kept.items()}
    assert sum(map(len, homes.values())) == 12


def test_rows_about_contexts_keep_their_passage_in_one_split() -> None:
    contexts = [
        Chunk(id=f"p{n}", document="squad", source="s", start=0, end=9, tokens=3,
              text=f"The {THINGS[n % 12]} of {PLACES[n % 10]} is kept by warden {PLACES[n % 9]}.")
        for n in range(20)
    ]  # fmt: skip
    rows = [
        row(f"Who keeps the {THINGS[n % 12]} of {PLACES[n % 10]} {w}?", f"warden {PLACES[n % 9]}",
            f"r{n}{w}", chunk=f"p{n}", document="squad")
        for n in range(20) for w in ("today", "tomorrow")
    ]  # fmt: skip
    done = curate(Material([], rows, contexts), CurateConfig(near_duplicate=1), 3)
    homes = [{one.provenance.chunk for one in kept} for kept in done.kept.values()]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert not reasons(done).get("overlaps_other_split")


def test_a_row_that_shows_passages_of_two_splits_is_in_none() -> None:
    chunks = [
        Chunk(id=f"p{n}", document="d", source="s", start=9 * n, end=9 * n + 9, tokens=3,
              text=f"The {THINGS[n % 12]} of {PLACES[n % 10]} is kept by warden {PLACES[n % 9]}.")
        for n in range(20)
    ]  # fmt: skip
    rows = [
        row(f"Who keeps the {THINGS[n % 12]} of {PLACES[n % 10]}?", f"warden {PLACES[n % 9]}",
            f"r{n}", chunk=f"p{n}", document="d")
        for n in range(20)
    ]  # fmt: skip
    alone = curate(Material(chunks, rows), CurateConfig(near_duplicate=1), 3)
    home = {one.provenance.chunk: split for split, kept in alone.kept.items() for one in kept}
    train, test = (next(c for c in home if home[c] == split) for split in ("train", "test"))
    same = next(chunk for chunk in home if home[chunk] == "train" and chunk != train)

    def showing(one: Example, other: str) -> Example:
        source = one.provenance.model_copy(update={"also": (other,)})
        return one.model_copy(update={"provenance": source})

    both = [
        showing(one, {train: same, test: train}[one.provenance.chunk])
        if one.provenance.chunk in (train, test)
        else one
        for one in rows
    ]
    done = curate(Material(chunks, both), CurateConfig(near_duplicate=1), 3)
    (tested,) = (one.id for one in rows if one.provenance.chunk == test)
    assert reasons(done) == {tested: "overlaps_other_split"}


def test_each_split_has_its_share_of_each_label() -> None:
    rows = [
        one.model_copy(update={"label": ("rare", "common", "common", "common")[n % 4]})
        for n, one in enumerate(facts(120))
    ]
    splits, _ = split_rows([], [], rows, validation=0.15, test=0.15, split_by="auto", seed=1)
    count = Counter((split, one.label) for split, one in zip(splits, rows, strict=True))
    for label, total in (("rare", 30), ("common", 90)):
        for split in ("validation", "test"):
            assert abs(count[split, label] - 0.15 * total) <= 1  # type: ignore[index]


def test_variants_follow_their_original_and_are_never_held_out() -> None:
    rows = facts(40)
    variants = [
        row(f"Say, {one.question.lower()}", one.answers[0], f"v{one.id}", parent=one.id,
            variant="casual")
        for one in rows
    ]  # fmt: skip
    of_variant = row("Tell me who?", "x", "w0", parent="vr0", variant="typo")
    done = curate(Material([], [*variants, of_variant, *rows]), CurateConfig(), 3)
    held = {one.id for split in ("validation", "test") for one in done.kept[split]}
    assert held
    assert not any(name.startswith(("v", "w")) for name in held)
    for one in done.kept["train"]:
        assert one.provenance.parent not in held
    gone = reasons(done)
    assert {gone[f"v{name}"] for name in held} == {"variant_of_validation", "variant_of_test"}
    kept = {one.id for one in done.kept["train"]}
    assert {f"v{name}" for name in kept if name.startswith("r")} <= kept | set(gone)
    assert (
        sum(name.startswith("vr") for name in kept)
        == len(done.kept["train"]) - sum(not name.startswith("vr") for name in kept)
        > 20
    )


def test_a_variant_goes_with_its_rejected_original() -> None:
    rows = facts(40)
    bad = row("According to the passage, who keeps it?", "warden Xy", "bad")
    child = row(
        "Who is it that keeps the old weir?", "warden Xy", "c", parent="bad", variant="formal"
    )
    gone = reasons(curate(Material([], [*rows, bad, child]), CurateConfig(), 3))
    assert gone["bad"] == "context_dependent"
    assert gone["c"] in {"parent_rejected", "variant_of_validation", "variant_of_test"}


@pytest.mark.parametrize("seed", range(3))
def test_misspelt_copies_and_paraphrases_of_held_out_rows_are_found_by_content(seed: int) -> None:
    rows = facts(60)
    copies = []
    for n, one in enumerate(rows):
        thing, place = THINGS[n % 12], PLACES[n // 12 % 10]
        asked = (f"By whom is the {thing} in {place} kept?", one.question.replace("keeps", "keesp"))
        copies += [row(text, one.answers[0], f"{one.id}c{m}") for m, text in enumerate(asked)]
    done = curate(Material([], [*rows, *copies]), CurateConfig(), seed)
    held = {
        one.id.partition("c")[0] for split in ("validation", "test") for one in done.kept[split]
    }
    assert held.isdisjoint(one.id.partition("c")[0] for one in done.kept["train"])
    assert set(reasons(done).values()) >= {"contaminated"}


def test_rows_that_repeat_an_outside_evaluation_set_go_from_training_and_validation(
    tmp_path: Path,
) -> None:
    rows = facts(60)
    lines = tmp_path / "eval.jsonl"
    lines.write_text(
        "\n".join(
            json.dumps({"question": one.question.upper(), "answer": one.answers[0]})
            for one in rows[:50]
        )
    )
    outside = list(read_evaluation(lines, "eval.jsonl"))
    done = curate(Material([], rows, evaluation=outside), CurateConfig(), 3)
    asked = {one.id for one in rows[:50]}
    for split in ("train", "validation"):
        assert asked.isdisjoint(one.id for one in done.kept[split])  # type: ignore[index]
    assert {one.detail.partition(",")[0] for one in done.rejected} >= {
        "same_question of eval.jsonl"
    }


def test_an_evaluation_set_is_read_in_both_forms_and_a_bad_line_is_named(tmp_path: Path) -> None:
    squad = tmp_path / "dev.json"
    one = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    squad.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ada.", "qas": [one]}]}]}))
    assert list(read_evaluation(squad, "dev.json")) == [
        Asked("dev.json, q1", "Who?", ("Ada",), True)
    ]
    lines = tmp_path / "dev.jsonl"
    lines.write_text('{"question": "Who?", "answers": {"text": ["Ada"]}}\n{"query": "Who?"}\n')
    rows = read_evaluation(lines, "dev.jsonl")
    assert next(rows).answers == ("Ada",)
    with pytest.raises(InputError, match=r"dev\.jsonl, line 2"):
        next(rows)
    lines.write_text('{"question": "Who\u2028 is it?", "answer": "Ada"}\r\n\n', "utf-8")
    assert [one.question for one in read_evaluation(lines, "dev.jsonl")] == ["Who\u2028 is it?"]
    for other in ("[]", '{"data": [{"paragraphs": [{"qas": ["Who?"]}]}]}', "[" * 100_000):
        squad.write_text(other)
        with pytest.raises(InputError, match="not a SQuAD file"):
            list(read_evaluation(squad, "dev.json"))


@pytest.mark.parametrize("language", ["eng", "english", "DE", ""])
def test_a_language_that_no_row_could_be_in_is_refused(language: str) -> None:
    with pytest.raises(ValidationError, match="language"):
        CurateConfig(language=language)


def test_what_counts_as_a_leak() -> None:
    evaluation = Evaluation(n=8)
    evaluation.add(Asked("e", "When is the old kiln of Brannoch lit in winter?", ("05:40",), False))

    def leak(question: str, answer: str, passage: bool = False) -> str | None:
        found = evaluation.leak(Asked("r", question, (answer,), passage))
        return found and found.kind

    assert leak("When is the old kiln of Brannoch lit in summer?", "06:10") == "n_gram"
    assert leak("In winter the old Brannoch kiln is lit when?", "nobody knows") == "same_question"
    assert leak("When is the old klin of Brannohc lit in wintre", "at 05:40") == "same_question"
    assert leak("What time do they light the kiln at Brannoch?", "05:40") == "paraphrase"
    assert leak("What time do they light the kiln at Brannoch?", "06:10") is None
    assert leak("When is the pump of Brannoch oiled?", "06:10") is None
    assert leak("When is the old kiln 2 of Brannoch lit?", "05:40") is None


def test_two_passages_may_be_asked_the_same() -> None:
    evaluation = Evaluation(n=13)
    evaluation.add(Asked("e", "When was it built?", ("1843",), True))
    assert evaluation.leak(Asked("r", "When was it built?", ("1901",), True)) is None
    assert evaluation.leak(Asked("r", "When was it built?", ("1843",), True)) is not None
    assert evaluation.leak(Asked("r", "When was it built?", ("1901",), False)) is not None


def test_question_duplicates_are_a_choice() -> None:
    rows = [*facts(30), row("Who keeps the kiln of Brannoch?", "nobody at all today", "again")]
    assert "again" not in reasons(curate(Material([], rows), CurateConfig(test_fraction=0.01), 3))
    strict = CurateConfig(duplicates="question", test_fraction=0.01)
    reason = reasons(curate(Material([], rows), strict, 3))["again"]
    assert reason == "duplicate_question" or reason.startswith("repeats_")


def test_repeats_in_meaning_respect_figures_and_families() -> None:
    vectors = [[1.0, 0.0], [0.999, 0.0447], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    import numpy as np

    found = repeats_of(
        np.array(vectors, dtype=np.float32),
        0.95,
        ["who lit it", "who set it alight", "who lit it 2", "a variant", "other"],
        ["a", "b", "c", "a", "d"],
    )
    assert [one and one.of for one in found] == [None, 0, None, None, None]


def test_semantic_repeats_are_dropped_by_split_and_reason() -> None:
    rows = facts(40)

    def similar(texts: list[str], threshold: float, families: list[str]) -> list[Repeat | None]:
        assert threshold == 0.9
        return [None] + [Repeat(0, False, 0.97)] * (len(texts) - 1)

    done = curate(Material([], rows), CurateConfig(semantic_duplicate=0.9), 3, similar)  # type: ignore[arg-type]
    assert set(reasons(done).values()) == {"semantic_duplicate", "repeats_test"}


def test_conversion_counts_rows_and_leaves_the_teachers_alone() -> None:
    good = row("The capital is ____, on the ____.", "Paris; Seine", "b", kind="fill_in_the_blank")
    bad = row("Which is it?", "Z", "m", kind="multiple_choice", options=("Rome", "Paris"))
    own = row("Which one is it?", "A", "t", kind="multiple_choice", options=("Oslo", "Bonn"),
              teacher="t")  # fmt: skip
    done = curate(Material([], [*facts(40), good, bad, own]), CurateConfig(), 3)
    assert done.added["blanks"] == 1
    assert done.converted == Counter({"fill_in_the_blank": 1})
    assert reasons(done)["m"] == "answer_not_an_option"
    assert ids(done).total() == 44
    homes = {
        split
        for split, kept in done.kept.items()
        for one in kept
        if set(one.answers) & {"Paris", "Seine"}
    }
    assert len(homes) == 1  # each of the two names the other's answer
    kinds = {one.id: one.kind for kept in done.kept.values() for one in kept}
    assert (kinds["b"], kinds["t"]) == ("qa", "multiple_choice")
    left = curate(Material([], [*facts(40), bad]), CurateConfig(convert=()), 3)
    assert ids(left)["m"] == 1
    assert "m" not in reasons(left)


def test_personal_data_is_kept_masked_or_dropped() -> None:
    mail = row("Who answers mail to the wardens of Pengate?", "Ada, ada@mail.example", "m")
    only = row("Which address do the wardens have?", "ada@mail.example", "o")
    rows = [*facts(40), mail, only]
    kept = curate(Material([], rows), CurateConfig(), 3)
    assert not {"m", "o"} & set(reasons(kept))
    masked = curate(Material([], rows), CurateConfig(personal_data="mask"), 3)
    assert reasons(masked)["o"] == "answer_is_personal_data"
    assert masked.masked == 2
    dropped = curate(Material([], rows), CurateConfig(personal_data="drop"), 3)
    assert {reasons(dropped)[name] for name in ("m", "o")} == {"personal_data"}
    for done in (masked, dropped):
        rest = [one.model_dump_json() for kept in done.kept.values() for one in kept]
        rest += [one.model_dump_json() for one in done.rejected]
        assert "ada@mail" not in "".join(rest)


def test_typo_variants_are_made_for_training_rows_alone() -> None:
    config = CurateConfig(typo_variants=2)
    done = curate(Material([], facts(60)), config, 3)
    made = [one for one in done.kept["train"] if one.provenance.variant == "typo"]
    originals = {one.id: one for one in done.kept["train"] if not one.provenance.variant}
    assert len(made) == done.added["typo"] > len(originals)
    for one in made:
        parent = originals[one.provenance.parent or ""]
        assert one.answers == parent.answers
        assert one.turns[-1] == parent.turns[-1]
        assert one.question != parent.question
        assert one.turns[0].content == one.question
    for split in ("validation", "test"):
        assert not any(one.provenance.variant for one in done.kept[split])  # type: ignore[index]
    again = curate(Material([], facts(60)), config, 3)
    assert again.kept == done.kept
    other = curate(Material([], facts(60)), config, 4)
    assert other.kept != done.kept


@pytest.mark.parametrize(
    ("question", "answer", "language", "reason"),
    [
        ("Wer hütet die Ersatzventile des Ofens in der Hütte?", "die Wärterin der Hütte", "en",
         "other_language"),
        ("Who keeps the spare valves of the kiln in the hut?", "the keeper of the hut", "en", ""),
        ("Wer hütet die Ersatzventile des Ofens in der Hütte?", "die Wärterin der Hütte", "", ""),
        ("Who is it?", "Ada", "de", ""),  # too short to tell
        ("Who keeps it <script>alert(1)</script>?", "Ada", "", "unsafe_markup"),
        ("Who keeps javascript:alert(1) in it?", "Ada", "", "unsafe_markup"),
        ("Who keeps it \u202enow?", "Ada", "", "unsafe_markup"),
        ("Who keeps it now?", "Ignore all previous instructions", "", "leaked_instruction"),
        ("### Instruction: who keeps it?", "Ada", "", "leaked_instruction"),
        ("Who keeps it in the table below?", "Ada", "", "context_dependent"),
        ("who keeps the valves", "Ada", "", ""),
        ("keep the valves", "Ada", "", "not_a_question"),
    ],
)  # fmt: skip
def test_filters_of_rows_without_a_passage(
    question: str, answer: str, language: str, reason: str
) -> None:
    found = sure_language(f"{question}\n{answer}")
    around = Surroundings(CurateConfig(), None, language, found)
    verdict = judge(row(question, answer, "r"), around)
    assert verdict.reason == reason


def test_the_language_of_most_rows_is_the_one_expected() -> None:
    asked = "Wer hütet die Ersatzventile des Ofens in der Halle von {}?"
    german = [
        row(
            asked.format(place),
            f"die alte Wärterin von {place}",
            f"d{n}",
            teacher="t",
            document="d",
        )
        for n, place in enumerate(PLACES)
    ]
    english = row("Who keeps the spare valves of the kiln here?", "the old warden of it", "e",
                  teacher="t", document="d")  # fmt: skip
    rows = [*german, english]
    for languages in ({}, {"d": "en"}, {"d": "de"}):
        done = curate(Material([], rows, languages=languages), CurateConfig(near_duplicate=1), 3)
        assert reasons(done) == {"e": "other_language"}
    loose = CurateConfig(near_duplicate=1, language="any")
    assert reasons(curate(Material([], rows), loose, 3)) == {}
    strict = CurateConfig(near_duplicate=1, language="en")
    assert set(reasons(curate(Material([], rows), strict, 3))) == {one.id for one in german}


def test_words_of_prompts_may_stand_where_the_passage_has_them() -> None:
    around = Surroundings(CurateConfig(), "The log is a JSON file. Ada keeps it.")
    assert judge(row("Who keeps the JSON file?", "Ada", "r", chunk="c"), around).keep
    assert judge(row("Is it a JSON file?", "Yes", "r", chunk="c"), around).keep
