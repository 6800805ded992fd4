"""The whole stage on two-layer models: its files, its figures, resume, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.events import read_events
from potstill.core.files import write_records
from potstill.errors import InputError, ModelError
from potstill.evaluate import STAGE, EvaluateConfig
from potstill.evaluate import bench as benches
from potstill.evaluate import run as stage
from potstill.records import Example, Provenance, Turn

PASSAGE = "The Halden valve opens at 42 turns. It is painted teal.\n\n"


def example(number: int, answer: str = "42 turns", extra: str = "") -> Example:
    user = f"{PASSAGE}{extra}Question {number}?"
    return Example(
        id=f"row{number:02d}",
        turns=(Turn(role="user", content=user), Turn(role="assistant", content=answer)),
        answers=(answer,) if answer.strip() else (),
        provenance=Provenance(document="d", chunk="c"),
    )


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., Any],
    save_model: Callable[[Any, Path], Path],
) -> Path:
    """distilled is the teacher with a little noise, undistilled with much; finetuned is another."""
    root = tmp_path_factory.mktemp("models")
    teacher = make_model(1, layers=2)
    save_model(teacher, root / "teacher")
    for name, noise in (("distilled", 0.01), ("undistilled", 0.2), ("finetuned", 0.1)):
        student = make_model(1, layers=2)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        save_model(student, root / name)
    return root


ROWS = [example(number, extra="Shared. " * (number % 2)) for number in range(6)]


def predictions(data: Path) -> list[Any]:
    """What was said, and how near it was to the teacher's within rounding."""
    rows = [json.loads(line) for line in (data / "predictions.jsonl").read_text().splitlines()]
    return [
        {key: pytest.approx(value, rel=1e-5) if key.startswith("kl") else value
         for key, value in row.items()}
        for row in rows
    ]  # fmt: skip


def results(data: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((data / "results.json").read_text())
    return loaded


def test_the_stage_describes_itself(models: Path) -> None:
    assert STAGE.inputs == ("curate", "correct", "distill")
    assert STAGE.load() is stage.run
    config = EvaluateConfig(teacher=str(models / "teacher"))
    assert len(STAGE.facts(config, models)["teacher"]) == 64


def test_results_hold_every_model_figure_and_difference(bench: Any) -> None:
    data = bench.run(ROWS)
    found = results(data)
    assert list(found["models"]) == ["teacher", "undistilled", "finetuned", "distilled"]
    tokens = {
        "kl", "reverse_kl", "agreement", "top5", "rank_correlation", "ece", "perplexity",
        "bits_per_byte",
    }  # fmt: skip
    answers = {"f1", "em", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "refusal_rate"}
    metrics = {*tokens, *(f"{name}_answer" for name in tokens), *answers}
    for model in found["models"].values():
        # the gold answers have two words: no corpus BLEU; one that is empty claims nothing
        assert set(model["metrics"]) - {"grounded"} == metrics
        for name, figure in model["metrics"].items():
            assert figure["n"] == 6 or name == "grounded"
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert model["disk_bytes"] > 0
        assert model["tokens_per_second"] > 0
        assert model["time_to_first_token_s"] > 0
        assert model["peak_memory_bytes"] > 0
    teacher = found["models"]["teacher"]
    assert teacher["metrics"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 6}
    assert teacher["metrics"]["agreement"]["value"] == 1.0
    assert teacher["parameters"] == 32 * 258 + 2 * (32 * 32 * 3 + 32 * 48 * 3 + 64) + 32
    kl = {name: model["metrics"]["kl"]["value"] for name, model in found["models"].items()}
    assert 0 < kl["distilled"] < kl["finetuned"] < kl["undistilled"]
    pair = found["differences"]["distilled_minus_undistilled"]["kl"]
    assert pair["value"] == pytest.approx(kl["distilled"] - kl["undistilled"])
    assert pair["significant"] is True
    assert pair["high"] < 0
    assert set(found["differences"]) == {
        "distilled_minus_undistilled",
        "distilled_minus_finetuned",
        "teacher_minus_distilled",
    }
    assert found["examples"] == {"evaluated": 6, "too_long": 0}
    assert found["contamination"] == {}  # there are no training rows beside these
    assert set(found["power"]["distilled_minus_undistilled"]) == {"f1", "em"}
    assert found["machine"]["cores"] >= 1


def test_token_figures_equal_a_plain_float64_computation(
    bench: Any, models: Path, tokenizer: Any
) -> None:
    """Perplexity and KL over all tokens, without chunks, shared prefixes or caches."""
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(models / "teacher").double().eval()
    student = AutoModelForCausalLM.from_pretrained(models / "finetuned").double().eval()
    kl = nll = rows = 0.0
    for row in ROWS:
        messages = [turn.model_dump() for turn in row.turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            p = torch.log_softmax(teacher(ids).logits[0, :-1], -1)
            q = torch.log_softmax(student(ids).logits[0, :-1], -1)
        kl += float((p.exp() * (p - q)).sum())
        nll -= float(q.gather(1, ids[0, 1:, None]).sum())
        rows += len(p)
    metrics = results(bench.run(ROWS))["models"]["finetuned"]["metrics"]
    assert metrics["kl"]["value"] == pytest.approx(kl / rows, rel=1e-4)
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(nll / rows), rel=1e-4)


def test_a_corrected_teacher_is_the_teacher_and_the_original_stands_beside_it(
    bench: Any, models: Path
) -> None:
    (bench.root / "correct/data").mkdir(parents=True)
    (bench.root / "correct/data/model").symlink_to(models / "distilled")
    found = results(bench.run(ROWS))
    names = ["teacher", "uncorrected", "undistilled", "finetuned", "distilled"]
    assert list(found["models"]) == names
    kl = {name: model["metrics"]["kl"]["value"] for name, model in found["models"].items()}
    assert kl["teacher"] == kl["distilled"] == 0.0  # the same weights here
    assert kl["uncorrected"] > 0
    assert "perplexity" in found["differences"]["teacher_minus_uncorrected"]


def test_figures_by_kind_and_by_position_add_up_to_the_whole(bench: Any) -> None:
    rows = [
        row.model_copy(update={"kind": "refusal" if number < 2 else "qa"})
        for number, row in enumerate(ROWS)
    ]
    student = results(bench.run(rows))["models"]["distilled"]
    kinds = student["by_kind"]
    assert {kind: found["f1"]["n"] for kind, found in kinds.items()} == {"qa": 4, "refusal": 2}
    f1 = (4 * kinds["qa"]["f1"]["value"] + 2 * kinds["refusal"]["f1"]["value"]) / 6
    assert student["metrics"]["f1"]["value"] == pytest.approx(f1)
    bins = student["by_position"]
    assert sum(one["tokens"] for one in bins) == 6 * (len("42 turns") + 1)
    kl = sum(one["kl"] * one["tokens"] for one in bins) / sum(one["tokens"] for one in bins)
    assert student["metrics"]["kl_answer"]["value"] == pytest.approx(kl)


def test_rows_seen_in_training_are_counted_and_figures_stand_without_them(bench: Any) -> None:
    (bench.root / "curate/data").mkdir(parents=True)
    text = PASSAGE.replace("Halden", "Brindle") + "How is the gauge of the mill read at night?"
    turns = (Turn(role="user", content=text), Turn(role="assistant", content="by lamp"))
    others = [
        ROWS[0].model_copy(update={"id": f"new{n}", "turns": turns, "answers": ("by lamp",)})
        for n in range(3)
    ]
    write_records(bench.root / "curate/data/train.jsonl", ROWS[:2])
    found = results(bench.run([ROWS[0], *others], contamination_words=6))
    audit = found["contamination"]
    assert (audit["rows"], audit["seen"]) == (4, 1)
    assert audit["most"][0]["id"] == "row00"
    assert audit["without"]["distilled"]["f1"]["n"] == 3


def test_drawn_answers_are_the_same_each_time_and_differ_from_greedy_ones(bench: Any) -> None:
    def said(name: str, **fields: Any) -> list[str]:
        text = (bench.run(ROWS, name=name, **fields) / "predictions.jsonl").read_text()
        return [json.loads(line)["answer"] for line in text.splitlines()]

    hot = {"temperature": 2.0, "seed": 3}
    drawn = said("drawn", decoding=hot)
    assert said("again", decoding=hot, batch_size=2) == drawn
    assert said("seed", decoding=hot | {"seed": 4}) != drawn
    assert said("greedy") != drawn
    assert said("one", decoding=hot | {"top_k": 1}) == said("greedy")


def test_predictions_hold_each_answer_once_per_example_and_model(bench: Any) -> None:
    data = bench.run(ROWS)
    lines = [json.loads(line) for line in (data / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 4
    assert [line["model"] for line in lines[:4]] == [
        "teacher", "undistilled", "finetuned", "distilled",
    ]  # fmt: skip
    assert {line["id"] for line in lines} == {row.id for row in ROWS}
    assert all(line["golds"] == ["42 turns"] for line in lines)
    assert all(line["answer_tokens"] == len("42 turns") + 1 for line in lines)
    assert all(line["kl"] == 0 for line in lines if line["model"] == "teacher")


def test_two_runs_and_any_row_order_give_the_same_digits(bench: Any) -> None:
    first = bench.run(ROWS)
    second = bench.run(ROWS[::-1], name="again")
    assert (first / "predictions.jsonl").read_bytes() == (second / "predictions.jsonl").read_bytes()
    a, b = results(first), results(second)
    assert a["differences"] == b["differences"]
    for name in a["models"]:
        assert a["models"][name]["metrics"] == b["models"][name]["metrics"]


def test_a_killed_run_goes_on_and_ends_in_the_same_figures(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.run(ROWS)
    real, scanned = benches.scan, []

    def dying(name: str, *arguments: Any, **more: Any) -> Any:
        scanned.append(name)
        if scanned == ["teacher", "undistilled", "finetuned"]:
            raise KeyboardInterrupt
        return real(name, *arguments, **more)

    monkeypatch.setattr(benches, "scan", dying)
    with pytest.raises(KeyboardInterrupt):
        bench.run(ROWS, name="killed")
    resumed = bench.run(ROWS, name="killed")
    assert scanned[3:] == ["finetuned", "distilled"]
    assert results(resumed)["differences"] == results(whole)["differences"]
    assert (resumed / "predictions.jsonl").read_bytes() == (
        whole / "predictions.jsonl"
    ).read_bytes()


def test_in_parts_the_figures_are_the_same_and_what_is_done_is_not_done_again(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.run(ROWS, batch_size=2)
    done: list[tuple[str, int]] = []

    def in_parts(made: benches.Bench, context: Any) -> Any:
        assert len(made.parts(9)) == 3  # there are no more batches
        parts = made.parts(2)
        assert sorted(place for part in parts for place in part.places) == list(range(6))
        assert [len(part.places) for part in parts] == [2, 4]
        for source in made.sources:
            for part in reversed(parts):
                if not made.done(source.name, part):
                    done.append((source.name, part.number))
                    made.score(source.name, part)
        return made.scored(parts)

    first = bench.run(ROWS, name="parts", batch_size=2, scoring=in_parts)
    assert len(done) == 8
    again = bench.run(ROWS, name="parts", batch_size=2, scoring=in_parts)
    assert len(done) == 8
    for data in (first, again):
        assert predictions(data) == predictions(whole)
        for name, model in results(whole)["models"].items():
            for metric, figure in model["metrics"].items():
                other = results(data)["models"][name]["metrics"][metric]
                assert other == pytest.approx(figure, rel=1e-4, abs=1e-6), (name, metric)


def test_too_long_examples_are_set_aside_counted_and_announced(bench: Any) -> None:
    data = bench.run([*ROWS, example(9, extra="long " * 80)], max_tokens=200)
    assert results(data)["examples"] == {"evaluated": 6, "too_long": 1}
    rejected = [json.loads(line) for line in (data / "rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rejected] == [("row09", "too_long")]
    warnings = [event for event in read_events(bench.diary)[0] if event["kind"] == "warning"]
    assert "1 of 7 test examples" in warnings[0]["message"]


def test_examples_that_leave_no_room_to_answer_in_the_models_window_are_set_aside(
    bench: Any,
) -> None:
    data = bench.run([*ROWS, example(9, extra="x" * 940)], max_tokens=5000)  # the window is 1024
    assert results(data)["examples"] == {"evaluated": 6, "too_long": 1}


def test_max_examples_takes_the_first_by_id(bench: Any) -> None:
    data = bench.run(ROWS[::-1], max_examples=2)
    ids = {json.loads(line)["id"] for line in (data / "predictions.jsonl").read_text().splitlines()}
    assert ids == {"row00", "row01"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        (ROWS[:1], "at least two"),
        ([example(1, extra="long " * 80)] * 2, "holds 0 usable"),
        ([example(1, answer=" "), example(2, answer=" ")], "0 have an answer"),
    ],
)
def test_a_test_set_without_a_measurable_row_is_one_clear_error(
    bench: Any, rows: list[Example], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bench.run(rows, max_tokens=200)


def test_a_diverged_student_is_one_clear_error(
    bench_of: Callable[[Path, Path], Any],
    models: Path,
    make_model: Callable[..., Any],
    save_model: Any,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models, broken)
    student = make_model(1, layers=2)
    with torch.no_grad():
        student.model.norm.weight.fill_(math.nan)
    save_model(student, broken / "distilled")
    with pytest.raises(ModelError, match="distilled model computes logits that are not finite"):
        bench_of(tmp_path / "b", broken).run(ROWS)


def test_a_teacher_that_says_nothing_is_told_and_compared_all_the_same(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = benches.scan

    def silent(*arguments: Any, **more: Any) -> Any:
        return [replace(one, answer="") for one in real(*arguments, **more)]

    monkeypatch.setattr(benches, "scan", silent)
    found = results(bench.run(ROWS))
    (warning,) = [one for one in read_events(bench.diary)[0] if one["kind"] == "warning"]
    assert "Every answer of the teacher to 6 test examples is empty" in warning["message"]
    assert found["models"]["distilled"]["metrics"]["kl"]["value"] > 0


def test_a_missing_student_is_one_clear_error(
    bench_of: Callable[[Path, Path], Any], models: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(models, partial)
    shutil.rmtree(partial / "finetuned")  # without a baseline there is none
    assert "finetuned" not in results(bench_of(tmp_path / "a", partial).run(ROWS))["models"]
    shutil.rmtree(partial / "undistilled")
    with pytest.raises(ModelError, match="no undistilled model"):
        bench_of(tmp_path / "b", partial).run(ROWS)


def test_a_student_with_another_template_is_refused(
    bench_of: Callable[[Path, Path], Any], models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models, other)
    template = other / "undistilled" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "### "))
    with pytest.raises(ModelError, match="undistilled model and its teacher"):
        bench_of(tmp_path / "b", other).run(ROWS)
