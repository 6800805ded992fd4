"""The report from small made-up artifacts: its keys, its words, its page, and missing parts."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from potstill.core.charts import Dot, Line, line_chart, scatter, short, ticks
from potstill.core.files import write_json, write_records
from potstill.evaluate import comparison, words
from potstill.evaluate.report import build_report
from potstill.records import Chunk, Document, Example, Provenance, Rejected, Turn

NASTY = '<script>alert(1)</script> & "quotes"'
METRICS = ("kl", "agreement", "perplexity", "f1", "em")


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value * 0.9, "high": value * 1.1, "n": 4}


def model(kl: float, parameters: int = 1000, **more: Any) -> dict[str, Any]:
    metrics = dict.fromkeys(METRICS, figure(0.5)) | {"kl": figure(kl)}
    return {
        "parameters": parameters,
        "disk_bytes": 2000,
        "peak_memory_bytes": 10**9,
        "tokens_per_second": 30.0,
        "time_to_first_token_s": 0.3,
        "metrics": metrics,
        **more,
    }


def difference(low: float, high: float) -> dict[str, Any]:
    middle = (low + high) / 2
    return {
        "value": middle, "low": low, "high": high, "n": 4, "significant": low > 0 or high < 0,
    }  # fmt: skip


def make_artifacts(root: Path, *, complete: bool = True) -> dict[str, Path]:
    names = ("ingest", "generate", "curate", "distill", "evaluate", "export")
    folders = {name: root / name for name in names}
    for folder in folders.values():
        folder.mkdir(parents=True)
    rows = [
        Example(
            id=f"e{number}",
            turns=(
                Turn(role="user", content=f"{NASTY} passage {number}"),
                Turn(role="assistant", content="teal"),
            ),
            question=f"Which colour {number}? {NASTY}",
            answers=("teal",),
            provenance=Provenance(document="d", chunk=f"c{number // 2}"),
        )
        for number in range(4)
    ]
    pair = dict.fromkeys(METRICS, difference(-0.1, 0.1))
    write_json(
        folders["evaluate"] / "results.json",
        {
            "models": {
                "teacher": model(0.0, 2000, reference_disk_bytes=700),
                "undistilled": model(2.0, unfinished_answers=3),
                "finetuned": model(1.5),
                "distilled": model(0.5),
            },
            "differences": {
                "distilled_minus_undistilled": {**pair, "kl": difference(-1.6, -1.4)},
                "distilled_minus_finetuned": {**pair, "f1": difference(-0.3, -0.1)},
            },
            "machine": {"torch": "2.13.0"},
            "settings": {"level": 0.95},
            "examples": {"evaluated": 4, "too_long": 1},
        },
    )
    lines = [
        {"id": row.id, "model": name, "answer": f"{name} {NASTY}", "f1": 0.5, "em": 0.0, "kl": 0.5,
         "finished": True}
        for row in rows
        for name in ("teacher", "undistilled", "finetuned", "distilled")
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, lines)) + "\n"
    (folders["evaluate"] / "predictions.jsonl").write_text(text)
    write_records(folders["curate"] / "test.jsonl", rows)
    if not complete:
        return folders
    write_records(folders["ingest"] / "documents.jsonl", [Document(id="d", source="a", text="x")])
    chunk = Chunk(id="c", document="d", source="a", start=0, end=1, tokens=1, text="x")
    write_records(folders["ingest"] / "chunks.jsonl", [chunk] * 3)
    write_records(folders["generate"] / "examples.jsonl", rows)
    rejected = [Rejected(id=str(n), stage="generate", reason="empty_answer") for n in range(2)]
    rejected.append(Rejected(id="9", stage="generate", reason="bad_json"))
    write_records(folders["generate"] / "rejected.jsonl", rejected)
    part = {
        "steps": [{"step": n, "tokens": 10 * n, "loss": 3.0 - n / 10} for n in range(1, 9)],
        "validation": [{"step": n, "tokens": 10 * n, "loss": 2.0, "kl": 1.0} for n in range(3)],
    }
    write_json(folders["distill"] / "history.json", {"distilled": part, "finetuned": part})
    write_json(
        folders["export"] / "export.json",
        {
            "models": {"gguf-f16": model(0.5), "gguf-q4_k_m": {"parameters": 1000}},
            "parity": [{"file": "student-f16.gguf", "equal": True, "kl": 0.00041}],
            "notes": [f"A note. {NASTY}"],
        },
    )
    return folders


STAGES = {
    "ingest": {"seconds": 2.0, "peak_memory_bytes": 10**8, "reused": True},
    "distill": {"seconds": 90.0, "peak_memory_bytes": 10**9, "reused": False},
}
RECIPE = {"name": "tiny", "description": NASTY, "seed": 17, "distill": {"epochs": 3.0}}
MACHINE = {"cores": 2, "memory_bytes": 24 * 10**9, "instruction_sets": ["avx2"]}


class Reader(html.parser.HTMLParser):
    """Collects tags, and anything that would reach out to a network."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]


@pytest.fixture
def built(tmp_path: Path) -> tuple[dict[str, Any], str]:
    report = build_report(tmp_path, make_artifacts(tmp_path / "a"), STAGES, RECIPE, MACHINE)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    return report, (tmp_path / "report.html").read_text()


def test_report_has_the_designs_keys(built: tuple[dict[str, Any], str]) -> None:
    report, _ = built
    assert list(report["models"]) == [
        "teacher", "undistilled", "finetuned", "distilled", "gguf-f16", "gguf-q4_k_m",
    ]  # fmt: skip
    for key in ("differences", "data", "stages", "machine", "recipe", "history", "samples"):
        assert report[key], key
    assert report["machine"] == {**MACHINE, "torch": "2.13.0"}
    assert report["data"]["ingest"] == {"kept": {"documents": 1, "chunks": 3}, "rejected": {}}
    assert report["data"]["generate"] == {
        "kept": {"examples": 4},
        "rejected": {"empty_answer": 2, "bad_json": 1},
    }


def test_samples_take_one_a_passage_before_a_second(built: tuple[dict[str, Any], str]) -> None:
    report, _ = built
    assert [sample["id"] for sample in report["samples"]] == ["e0", "e2", "e1", "e3"]
    assert set(report["samples"][0]["answers"]) == {
        "teacher", "undistilled", "finetuned", "distilled",
    }  # fmt: skip


def test_the_page_is_self_contained_and_escapes_untrusted_text(
    built: tuple[dict[str, Any], str],
) -> None:
    _, page = built
    reader = Reader()
    reader.feed(page)
    assert reader.links == []
    assert "script" not in reader.tags
    assert page.count("&lt;script&gt;alert(1)") >= 10
    assert "url(" not in page
    assert "@import" not in page
    assert reader.tags.count("figure") == 3 + 4  # three training curves, four trade-offs


def test_the_page_names_notes_parity_stages_and_recipe(built: tuple[dict[str, Any], str]) -> None:
    _, page = built
    for text in ("student-f16.gguf", "1 min 30 s", "distill.epochs", "potstill chat tiny", "avx2"):
        assert text in page
    assert "Undistilled 3" in page  # answers that were cut off
    assert "1 test examples were too long" in page


def test_a_bare_evaluation_still_makes_a_report(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path / "a", complete=False)
    report = build_report(tmp_path, artifacts, {}, {}, {})
    assert report["history"] == {}
    assert report["parity"] == []
    page = (tmp_path / "report.html").read_text()
    assert "Export parity" not in page
    assert 'id="training"' not in page


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path / "a")
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build_report(tmp_path / name, artifacts, STAGES, RECIPE, MACHINE)
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_both_tables_have_a_row_a_model_and_mark_what_is_missing(
    built: tuple[dict[str, Any], str],
) -> None:
    report = built[0]
    names = [words.model_name(name) for name in report["models"]]
    for header, *rows in (comparison.quality(report), comparison.sizes(report)):
        assert {len(row) for row in rows} == {len(header)}
        assert [row[0] for row in rows[: len(names)]] == names
    quality, sizes = comparison.quality(report), comparison.sizes(report)
    assert quality[names.index("GGUF Q4_K_M") + 1][1] == words.MISSING
    assert sizes[1][:3] == ["Teacher", "0.0 M", "700 B"]  # the file, not its unpacked copy


def test_sizes_end_with_shares_of_the_teacher() -> None:
    teacher = {
        "parameters": 1000,
        "disk_bytes": 2000,
        "reference_disk_bytes": 500,
        "peak_memory_bytes": 400,
        "time_to_first_token_s": 0.2,
        "tokens_per_second": 10.0,
        "parallel_tokens_per_second": {"4": 20.0, "16": 40.0},
    }
    student = {
        "parameters": 500,
        "disk_bytes": 1000,
        "peak_memory_bytes": 100,
        "time_to_first_token_s": 0.05,
        "tokens_per_second": 25.0,
        "parallel_tokens_per_second": {"4": 40.0, "16": 100.0},
    }
    file = student | {"disk_bytes": 125, "parallel_tokens_per_second": None}
    report = {
        "models": {"teacher": teacher, "distilled": student, "gguf-q8_0": file},
        "recommended": {"model": "gguf-q8_0"},
    }
    assert comparison.sizes(report)[-2:] == [
        ["Distilled / Teacher", "50%", "200%", "25%", "25%", "2.50x", "2.50x"],
        ["GGUF Q8_0 / Teacher", "50%", "25%", "25%", "25%", "2.50x", words.MISSING],
    ]


def test_the_text_shows_rows_side_by_side(built: tuple[dict[str, Any], str]) -> None:
    report = built[0]
    lines = comparison.text(report).splitlines()
    sample = report["samples"][0]
    start = lines.index(f"? {sample['question']}")
    shown = lines[start + 1 : start + 2 + len(sample["answers"])]
    assert shown[0].split()[0] == "right"
    for (name, one), line in zip(sample["answers"].items(), shown[1:], strict=True):
        assert line.strip().startswith(words.model_name(name))
        assert line.endswith(" ".join(one["answer"].split()) or "(nothing)")


def test_only_intervals_that_exclude_zero_become_claims(
    built: tuple[dict[str, Any], str],
) -> None:
    verdict = built[0]["verdict"]
    assert verdict["made"] == ["The student has 0.0 M parameters, 50% of its teacher's 0.0 M."]
    before, alone = verdict["claims"]
    assert before["text"] == (
        "Distilled, beside the same student before distillation, is better in KL to the teacher; "
        "not told apart in top-1 agreement, perplexity, answer F1 and exact match"
    )
    assert before["figures"][0] == (
        "better: KL to the teacher 0.500 against 2.00 nats a token, "
        f"difference {words.MINUS}1.60 to {words.MINUS}1.40"
    )
    assert [one.partition(":")[0] for one in before["figures"][1:]] == ["not told apart"] * 4
    assert " is worse in answer F1; not told apart in " in alone["text"]
    assert verdict["open"] == []


def test_a_correction_is_told_whether_it_helped_or_not(tmp_path: Path) -> None:
    folders = make_artifacts(tmp_path / "a") | {"correct": tmp_path / "correct"}
    stages = STAGES | {"correct": STAGES["distill"]}
    off = build_report(tmp_path, folders, stages, RECIPE, MACHINE)
    assert "correct" not in off["stages"]

    folders["correct"].mkdir()
    losses = {"loss_before": 2.5, "loss_after": 2.75}
    write_json(folders["correct"] / "correction.json", {"kept": False, **losses})
    made = build_report(tmp_path, folders, stages, RECIPE, MACHINE)
    assert list(made["stages"]) == ["ingest", "correct", "distill"]
    assert any("2.50 before, 2.75 after" in note for note in made["notes"])
    assert made["verdict"] == off["verdict"]

    results = json.loads((folders["evaluate"] / "results.json").read_text())
    results["models"]["uncorrected"] = model(0.2)
    pair = dict.fromkeys(METRICS, difference(-0.2, 0.1)) | {"perplexity": difference(-3, -1)}
    results["differences"]["teacher_minus_uncorrected"] = pair
    write_json(folders["evaluate"] / "results.json", results)
    write_json(folders["correct"] / "correction.json", {"kept": True, **losses})
    made = build_report(tmp_path, folders, stages, RECIPE, MACHINE)
    assert not any("before," in note for note in made["notes"])
    claim = made["verdict"]["claims"][-1]
    assert claim["text"] == (
        "The corrected teacher, beside the teacher as it came, is better in perplexity; "
        "not told apart in answer F1 and exact match"
    )
    assert [one.split(" ")[0] for one in claim["figures"]] == ["better:", "not", "not"]
    results["differences"]["teacher_minus_uncorrected"] = pair | {"perplexity": difference(-1, 1)}
    write_json(folders["evaluate"] / "results.json", results)
    opened = build_report(tmp_path, folders, stages, RECIPE, MACHINE)["verdict"]["open"][-1]
    assert opened["text"].endswith("is not told apart in perplexity, answer F1 and exact match")
    shown = [row[0] for row in comparison.quality(made)]
    assert [name for name in shown if "unc" in name] == ["Teacher, uncorrected"]


def test_a_teacher_is_no_judge_of_itself_whatever_the_tokenizers() -> None:
    apart = ("span_kl", "agreement", "bits_per_byte", "f1", "em")
    measured = {"metrics": dict.fromkeys(apart, figure(0.5))}
    pair = {
        name: difference(0.1, 0.3) if name == "agreement" else difference(-3, -1) for name in apart
    }
    report = {
        "models": {"teacher": measured, "uncorrected": measured},
        "differences": {"teacher_minus_uncorrected": pair},
    }
    (claim,) = words.verdict(report)["claims"]
    said = [one.split(" 0.")[0].split(" 50")[0] for one in claim["figures"]]
    assert said == ["better: Bits a byte", "worse: Answer F1", "worse: Exact match"]


@pytest.mark.parametrize("compared", [True, False])
def test_files_that_were_measured_on_fewer_rows_are_named(tmp_path: Path, compared: bool) -> None:
    """Of a student with another tokenizer, exported files have no KL and no agreement."""
    folders = make_artifacts(tmp_path / "a")
    metrics = dict.fromkeys(("perplexity", "f1"), figure(0.5) | {"n": 2})
    metrics |= {"kl": figure(0.5) | {"n": 3}} if compared else {"perplexity": figure(2) | {"n": 3}}
    export = {"models": {"gguf-f16": {"parameters": 1000, "metrics": metrics}}}
    write_json(folders["export"] / "export.json", export)
    notes = build_report(tmp_path, folders, STAGES, RECIPE, MACHINE)["notes"]
    assert "of which GGUF F16 3 (export.max_examples)" in notes[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (28800.4, "28,800"), (158.2, "158"), (19.84, "19.8"), (2.214, "2.21"), (0.61449, "0.614"),
        (0, "0"), (0.0000412, "4.12e-05"), (None, words.MISSING), (-1.5, f"{words.MINUS}1.50"),
        (3.2e12, "3.20e+12"),
    ],
)  # fmt: skip
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0412, "41 ms"), (9.96, "10.0 s"), (75, "1 min 15 s"), (3725, "1 h 02 min"), (None, "–")],  # noqa: RUF001
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_sizes() -> None:
    assert [words.size(n) for n in (12, 98_379_826, 1_210_000_000)] == ["12 B", "98 MB", "1.21 GB"]


@pytest.mark.parametrize(
    ("top", "expected"),
    [(2.82, [0, 1, 2, 3]), (96, [0, 25, 50, 75, 100]), (0.07, [0, 0.02, 0.04, 0.06, 0.08])],
)
def test_ticks_are_round_and_cover_the_data(top: float, expected: list[float]) -> None:
    assert ticks(top) == expected


def test_ticks_of_nothing() -> None:
    assert ticks(0.0) == ticks(float("nan")) == [0.0, 1.0]


def test_tick_texts() -> None:
    assert [short(v) for v in (0, 0.5, 2500, 50_000, 1_500_000)] == [
        "0",
        "0.5",
        "2500",
        "50k",
        "1.5M",
    ]


def test_curves_skip_what_is_not_finite_and_are_empty_without_two_points() -> None:
    nan = float("nan")
    assert line_chart("t", [Line("a", "m", [(0, nan), (1, 2)])], "x", "y") == ""
    chart = line_chart("<t>", [Line("a&b", "m", [(0, 1), (1, nan), (2, 3)])], "x", "y")
    assert "&lt;t&gt;" in chart
    assert "a&amp;b" in chart
    assert "nan" not in chart


def test_long_curves_are_averaged_to_a_drawable_number_of_points() -> None:
    points = [(float(n), 1.0 + n % 2) for n in range(5000)]
    chart = line_chart("t", [Line("a", "m", points, "train")], "x", "y")
    drawn = chart.split('points="')[1].split('"')[0].split()
    assert len(drawn) == 500


def test_scatter_needs_two_models_and_draws_each_whisker() -> None:
    one = Dot("A", "m", "circle", 1.0, 2.0, 1.5, 2.5)
    assert scatter("t", [one], "x", "y") == ""
    both = scatter("t", [one, Dot("B", "m", "square", 3.0, 1.0, 0.5, 1.5)], "x", "y")
    assert both.count('class="whisker') == 2
    assert both.count('class="name"') == 2
