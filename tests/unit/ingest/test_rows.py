"""Ready-made rows: every kind of file, what becomes of a row, and why one is set aside."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tests.unit.ingest.samples import squad, write_json

from potstill.core.files import read_records
from potstill.errors import InputError
from potstill.ingest.config import IngestConfig
from potstill.ingest.one import Task, read_one, summary_of
from potstill.ingest.seen import SeenPages
from potstill.records import Chunk, Example, Rejected

Ingest = Callable[..., Any]
HEAD = "question,answer,context\n"


def only(outcome: Any) -> dict[str, Any]:
    (row,) = outcome.rows
    return dict(row)


def table(project: Path, text: str, name: str = "a.csv", encoding: str = "utf-8") -> str:
    (project / name).write_bytes(text.encode(encoding))
    return name


def lines(project: Path, *rows: Any) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return table(project, text, "a.jsonl")


def test_a_row_with_a_passage_is_asked_like_a_generated_one(
    project: Path, run_ingest: Ingest
) -> None:
    name = table(project, HEAD + "How tall is it?,12 m,The tower is 12 m tall.\n")
    outcome = run_ingest(name)
    row = only(outcome)
    (context,) = outcome.contexts
    assert row["turns"] == [
        {
            "role": "user",
            "content": "Read the passage, then answer the question in a few words.\n\n"
            "Passage: The tower is 12 m tall.\n\nQuestion: How tall is it?",
        },
        {"role": "assistant", "content": "12 m"},
    ]
    assert (row["kind"], row["question"], row["answers"]) == ("qa", "How tall is it?", ["12 m"])
    assert row["provenance"]["chunk"] == context["id"]
    assert row["provenance"]["document"] == context["document"]
    assert row["provenance"]["span"] == {"start": 13, "end": 17}
    assert (context["text"], context["source"]) == ("The tower is 12 m tall.", "a.csv")
    assert outcome.chunks == outcome.documents == []
    data = outcome.folder / "data"
    assert [one.id for one in read_records(data / "rows.jsonl", Example)] == [row["id"]]
    assert [one.id for one in read_records(data / "contexts.jsonl", Chunk)] == [context["id"]]


def test_rows_and_generated_rows_have_the_same_default_words() -> None:
    from potstill.generate.config import PromptConfig
    from potstill.ingest.rows_config import RowsPromptConfig

    assert RowsPromptConfig().passage == PromptConfig().student


def test_a_row_without_a_passage_is_just_its_question(project: Path, run_ingest: Ingest) -> None:
    row = only(run_ingest(table(project, "Prompt;Completion\nSay {it}.;It.\n")))
    assert [turn["content"] for turn in row["turns"]] == ["Say {it}.", "It."]
    assert row["provenance"]["chunk"] == ""


def test_the_words_of_a_row_can_be_changed(project: Path, run_ingest: Ingest) -> None:
    prompt = {"passage": "{passage} Q: {question}", "question": "Q: {question}"}
    name = table(project, HEAD + "How?,So.,Thus.\nWho?,She.,\n")
    rows = run_ingest(name, rows={"prompt": prompt}).rows
    assert [row["turns"][0]["content"] for row in rows] == ["Thus. Q: How?", "Q: Who?"]


# --- tables ---------------------------------------------------------------------------------------

CELLS = [["How, tall?", '12 "m"', "line\nbreak"], ["Größe?", "5 µm", "naïve; café"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_quotes_encodings_and_line_ends_are_found(
    project: Path, run_ingest: Ingest, delimiter: str, encoding: str, end: str
) -> None:
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerows([["question", "answer", "context"], *CELLS])
    outcome = run_ingest(table(project, file.getvalue(), encoding=encoding))
    found = [
        [row["question"], row["answers"][0], context["text"]]
        for row, context in zip(outcome.rows, outcome.contexts, strict=True)
    ]
    assert found == CELLS


def test_other_ways_to_quote(project: Path, run_ingest: Ingest) -> None:
    escaped = table(project, 'question,answer\n"Say \\"hi\\", now?","a,b"\n', "b.csv")
    single = table(project, "'question','answer'\n'Who, then?','it''s me'\n", "c.csv")
    rows = run_ingest(escaped, single).rows
    assert [(row["question"], row["answers"]) for row in rows] == [
        ('Say "hi", now?', ["a,b"]),
        ("Who, then?", ["it's me"]),
    ]


def test_single_bad_rows_are_set_aside_each_with_its_reason(
    project: Path, run_ingest: Ingest
) -> None:
    text = (
        HEAD + "Good?,Yes.,\n"
        "ragged,row\n"
        "too,many,cells,here\n"
        "trailing,commas,fine,,\n"
        ",no question,\n"
        "no answer,  ,x\n"
        '"open quote,lost,\n'
        "After?,Still there.,\n"
        "\n"
    )
    raw = (
        text.encode()
        + b"Caf\xe9?,bad bytes,\n"
        + "Gr\u00f6\u00dfe? \u00e4\u00f6\u00fc,12,\n".encode()
    )
    (project / "a.csv").write_bytes(raw)
    outcome = run_ingest("a.csv")
    assert [row["question"] for row in outcome.rows] == [
        "Good?",
        "trailing",
        "After?",
        "Größe? äöü",
    ]
    found = [(one["reason"], one["row"]["number"]) for one in outcome.rejected]
    assert found == [
        ("ragged_row", 3),
        ("ragged_row", 4),
        ("empty_question", 6),
        ("empty_answer", 7),
        ("open_quote", 8),
        ("bad_encoding", 11),
    ]
    assert outcome.rejected[4]["row"]["fields"] == {"line": '"open quote,lost,\n'}
    assert list(read_records(outcome.folder / "data" / "rejected.jsonl", Rejected))
    first = next(event for event in outcome.events if event["kind"] == "rejected")
    assert first["detail"] == "a.csv, row 3: 2 cells, and the first line names 3 columns"


def test_a_forgotten_quote_costs_its_own_line_where_later_rows_have_quotes(
    project: Path, run_ingest: Ingest
) -> None:
    rows = [f'What is flag {number}?,red {number},"Flag {number}, \nwhich is red {number}."\n'
            for number in range(4)]  # fmt: skip
    rows.insert(1, '"What is lost,foo,bar\n')
    rows.insert(3, 'What is ragged?,"two\nlines",and,more\n')
    (project / "q.csv").write_text("question,answer,context\n" + "".join(rows))
    outcome = run_ingest("q.csv")
    assert [row["answers"] for row in outcome.rows] == [[f"red {number}"] for number in range(4)]
    found = [(one["reason"], one["row"]["number"]) for one in outcome.rejected]
    assert found == [("open_quote", 4), ("ragged_row", 7)]


def test_a_table_with_wrong_columns_is_one_error_that_lists_them(
    project: Path, run_ingest: Ingest
) -> None:
    name = table(project, "colour;size\nred;3\n")
    with pytest.raises(InputError, match=r"a question; the columns are 'colour', 'size'"):
        run_ingest(name)
    with pytest.raises(InputError, match=r"no column 'sizes' \(did you mean 'size'\?\)"):
        run_ingest(name, rows={"columns": {"question": "colour", "answer": "sizes"}})
    with pytest.raises(InputError, match="there twice"):
        run_ingest(table(project, "answer,answer\n1,2\n"))
    with pytest.raises(InputError, match="no line that names the columns"):
        run_ingest(table(project, "\n\n \n"))
    with pytest.raises(InputError, match=r"named \.csv but is a zip archive"):
        run_ingest(table(project, "PK\x03\x04" + "x" * 99))


def test_columns_can_be_named(project: Path, run_ingest: Ingest) -> None:
    name = table(
        project, "nr,ask,say,about,sort,a,b\nn1,Who?,Bob,T1,x,Bob,Eve\nn1,Whom?,Bob,T1,y,Bob,Eve\n"
    )
    columns = {
        "question": "ask", "answer": "say", "document": "about", "label": "sort", "id": "nr",
        "options": ["a", "b"],
    }  # fmt: skip
    outcome = run_ingest(name, rows={"columns": columns})
    row = only(outcome)
    assert (row["label"], row["options"], row["kind"]) == ("x", ["Bob", "Eve"], "multiple_choice")
    assert outcome.reasons == ["duplicate_id"]


def test_many_bad_rows_are_told_in_one_line_each_reason(project: Path, run_ingest: Ingest) -> None:
    outcome = run_ingest(table(project, HEAD + "ok?,yes,\n" + "bad\n" * 500))
    events = [event for event in outcome.events if event["kind"] == "rejected"]
    assert len(outcome.rejected) == 500
    assert len(events) < 30
    assert sum(event.get("count", 1) for event in events) == 500


def test_a_large_table_is_read_in_flat_memory(tmp_path: Path) -> None:
    peaks = []
    for rows in (4_000, 16_000):
        path = tmp_path / f"{rows}.csv"
        with path.open("w") as file:
            file.write(HEAD)
            for number in range(rows):
                passage = f"Tower {number} is {number} m tall. " + "It stands by the sea. " * 10
                file.write(f"How tall is tower {number}?,{number} m,{passage}\n")
        task = Task(path.name, path, f"{rows:016x}")
        config = IngestConfig(sources=["x"])
        tracemalloc.start()
        pages = SeenPages(config, tmp_path, 1)
        folder = read_one(task, config, len, tmp_path, pages, lambda done, of, unit: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary_of(folder)["counts"]["rows"] == rows
        assert summary_of(folder)["counts"]["contexts"] == rows
    assert peaks[1] < 1.2 * peaks[0] + 200_000


# --- JSON, JSON Lines, Parquet, SQuAD -------------------------------------------------------------


def test_what_is_not_a_number_is_nothing(project: Path, run_ingest: Ingest) -> None:
    nothing = float("nan")
    name = lines(
        project,
        {"question": "How?", "answer": "So.", "context": nothing},
        {"question": nothing, "answer": "x"},
        {"question": "Who?", "answer": nothing},
    )
    outcome = run_ingest(name)
    assert only(outcome)["provenance"]["chunk"] == ""
    assert outcome.reasons == ["empty_question", "empty_answer"]


def test_json_lines_bring_their_own_keys(project: Path, run_ingest: Ingest) -> None:
    name = lines(
        project,
        {"instruction": "Add.", "input": "2 and 3", "output": 5},
        {
            "question": "Where?",
            "answers": ["Here", "here ", "Here"],
            "passage": "Here it is. Here.",
        },
        {"Query": "True?", "Response": True},
        {"colour": "red"},
        {"question": ["no", "text"], "answer": "x"},
        ["no", "row"],
    )
    with (project / name).open("a") as file:
        file.write('{"question": "torn\n\n')
    outcome = run_ingest(name)
    assert [(row["question"], row["answers"]) for row in outcome.rows] == [
        ("Add.\n\n2 and 3", ["5"]),
        ("Where?", ["Here", "here"]),
        ("True?", ["true"]),
    ]
    assert outcome.rows[1]["provenance"]["span"] is None  # it stands there twice
    assert outcome.reasons == ["wrong_columns", "not_text", "not_a_row", "bad_json"]


@pytest.mark.parametrize(
    "wrap", [lambda rows: rows, lambda rows: {"data": rows}, lambda rows: {"faq": rows, "n": 1}]
)
def test_json_is_a_list_of_rows_or_holds_one(
    project: Path, run_ingest: Ingest, wrap: Callable[[Any], Any]
) -> None:
    write_json(project / "a.json", wrap([{"q": "Who?", "a": "Bob"}, 3]))
    outcome = run_ingest("a.json")
    assert only(outcome)["answers"] == ["Bob"]
    assert outcome.reasons == ["not_a_row"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "neither a list of rows nor SQuAD"),
        ("[{]", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds no row"),
    ],
)
def test_other_json_is_refused(project: Path, run_ingest: Ingest, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_ingest(table(project, text, "a.json"))


def test_squad_gives_gold_answers_spans_refusals_and_articles(
    project: Path, run_ingest: Ingest
) -> None:
    write_json(project / "dev.json", squad())
    outcome = run_ingest("dev.json", rows={"refusal": "It does not say."})
    sold, who, hot = outcome.rows
    kelp, copper = outcome.contexts
    assert sold["answers"] == ["12 h", "12 h more"]
    assert sold["provenance"]["span"] == {"start": 34, "end": 38}  # the second of the two
    assert (who["kind"], who["answers"]) == ("refusal", ["It does not say."])
    assert who["provenance"]["span"] is None
    assert sold["provenance"]["chunk"] == who["provenance"]["chunk"] == kelp["id"]
    assert hot["provenance"]["chunk"] == copper["id"]
    # Two articles may have one title.
    assert sold["provenance"]["document"] == who["provenance"]["document"]
    assert sold["provenance"]["document"] != hot["provenance"]["document"]
    assert outcome.rejected == []


def test_parquet_reads_like_json(project: Path, run_ingest: Ingest) -> None:
    rows = [
        {
            "title": "Kelp",
            "context": "Kelp dries in 12 h.",
            "question": "How long?",
            "answers": {"text": ["12 h"], "answer_start": [14]},
        },
        {
            "title": "Kelp",
            "context": "Kelp dries in 12 h.",
            "question": "Who?",
            "answers": {"text": [], "answer_start": []},
        },
        {"title": "Rye", "context": None, "question": "What?", "answers": None},
    ] * 300
    parquet.write_table(pyarrow.Table.from_pylist(rows), project / "a.parquet", row_group_size=250)
    outcome = run_ingest("a.parquet")
    assert len(outcome.rows) == 600
    assert [row["kind"] for row in outcome.rows[:2]] == ["qa", "refusal"]
    assert outcome.rows[0]["provenance"]["span"] == {"start": 14, "end": 18}
    assert len(outcome.contexts) == 1
    assert outcome.reasons == ["empty_answer"] * 300
    damaged = (project / "a.parquet").read_bytes()
    (project / "b.parquet").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(InputError, match="damaged or locked"):
        run_ingest("b.parquet")
    with pytest.raises(InputError, match=r"named \.parquet but is text"):
        run_ingest(table(project, "question,answer", "c.parquet"))


# --- kinds of rows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"choices": ["Rome", "Paris"], "answer": "B"}, "Paris"),
        ({"choices": ["Rome", "Paris"], "answer": "(b)"}, "Paris"),
        ({"choices": ["Rome", "Paris"], "answer": "B) the city of Paris"}, "Paris"),
        ({"choices": ["A. Rome", "B. Paris"], "answer": "paris"}, "Paris"),
        ({"choices": {"text": ["Rome", "Paris"], "label": ["1", "2"]}, "answerKey": "2"}, "Paris"),
        ({"options": {"A": "Rome", "B": "Paris"}, "answer": "B"}, "Paris"),
        ({"options": "Rome|Paris", "answer": "Paris"}, "Paris"),
        ({"options": '["Rome", "Paris"]', "answer": "A"}, "Rome"),
        ({"A": "Rome", "B": "Paris", "C": "", "answer": "B"}, "Paris"),
        ({"option1": "Rome", "option2": "Paris", "correct_option": "B"}, "Paris"),
        ({"opa": "Rome", "opb": "Paris", "answer": "Rome"}, "Rome"),
        ({"choices": ["3", "1"], "answer": 1}, "1"),
    ],
)
def test_the_answer_of_a_choice_is_its_text(
    project: Path, run_ingest: Ingest, row: dict[str, Any], answer: str
) -> None:
    found = only(run_ingest(lines(project, {"question": "Which city?", **row})))
    assert (found["kind"], found["answers"]) == ("multiple_choice", [answer])
    assert found["turns"][1]["content"] == answer
    first = found["options"][0]
    assert found["turns"][0]["content"].startswith("Which city?\n\n")
    assert f") {first}\n" in found["turns"][0]["content"]


def test_a_numbered_answer_needs_to_know_where_numbers_begin(
    project: Path, run_ingest: Ingest
) -> None:
    row = {"question": "Which?", "choices": ["Rome", "Paris"]}
    name = lines(project, {**row, "answer": 1}, {**row, "answer": 2}, {**row, "answer": "Bonn"})
    outcome = run_ingest(name, rows={"first_option": 1})
    assert [row["answers"] for row in outcome.rows] == [["Rome"], ["Paris"]]
    assert outcome.reasons == ["answer_not_an_option"]
    outcome = run_ingest(name, rows={"first_option": 0}, draft="zero")
    assert [row["answers"] for row in outcome.rows] == [["Paris"]]
    with pytest.raises(InputError, match=r"ingest\.rows\.first_option"):
        run_ingest(name, draft="none")


def test_choices_and_blanks_in_the_question_are_left_as_found(
    project: Path, run_ingest: Ingest
) -> None:
    inline = "Which city? A) Rome B) Paris"
    name = lines(
        project,
        {"question": inline, "answer": "B"},
        {"question": "The tower is ____ tall.", "answer": "12 m"},
        {"question": "The tower is [MASK] tall.", "answer": "12 m"},
        {"question": "What does __init__ do?", "answer": "It prepares an object."},
    )
    choice, *blanks, plain = run_ingest(name).rows
    assert (choice["kind"], choice["question"], choice["options"]) == (
        "multiple_choice",
        inline,
        [],
    )
    assert choice["answers"] == ["B"]
    assert {blank["kind"] for blank in blanks} == {"fill_in_the_blank"}
    assert plain["kind"] == "qa"


def test_conversations_are_taken_as_they_are(project: Path, run_ingest: Ingest) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Bob."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    name = lines(
        project,
        {"messages": talk},
        {"messages": talk[:3]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {"messages": talk[:4]},
        {"messages": talk[2:]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": []},
        {"messages": None, "prompt": "Hm?", "completion": "Ha."},
    )
    outcome = run_ingest(name)
    assert [row["kind"] for row in outcome.rows] == ["conversation", "qa", "qa", "qa"]
    assert outcome.rows[0]["question"] == "Why?"
    assert outcome.rows[0]["answers"] == ["So."]
    assert outcome.reasons == ["bad_messages"] * 3 + ["empty_messages"]


def test_rows_and_documents_go_together_and_each_row_has_its_own_id(
    project: Path, run_ingest: Ingest
) -> None:
    (project / "a.txt").write_text("The tower by the sea is 12 m tall and white.")
    table(project, HEAD + "How tall?,12 m,\n" * 3)
    table(project, HEAD + "How tall?,12 m,\n" * 3 + "\n", "b.csv")
    table(project, HEAD + "How tall?,12 m,\n" * 3, "c.csv")
    outcome = run_ingest(".")
    assert len(outcome.documents) == 1
    assert len({row["id"] for row in outcome.rows}) == len(outcome.rows) == 6
    assert outcome.reasons == ["duplicate_file"]
