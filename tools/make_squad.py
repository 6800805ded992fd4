"""Build the sample's SQuAD file from the handbook and the questions about it.

In: `src/potstill/sample/handbook.md`, `tools/handbook_questions.txt`. Out: `handbook-squad.json`
beside the handbook, in the form of SQuAD 1.1: an article a section, a paragraph a paragraph, and
each answer with the place where it stands. The same sources give the same bytes.

Run: python tools/make_squad.py   (--check: only say whether the file is fresh)
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "src" / "potstill" / "sample"
TARGET = SAMPLE / "handbook-squad.json"


def built() -> str:
    """The file's text. Errors: ValueError for an answer or a paragraph that is not there."""
    paragraphs = _paragraphs((SAMPLE / "handbook.md").read_text("utf-8"))
    articles: dict[str, list[dict[str, Any]]] = {}
    here: list[dict[str, Any]] = []
    text = ""
    for line in (HERE / "handbook_questions.txt").read_text("utf-8").splitlines():
        if line.startswith("> "):
            section, text = _starting(paragraphs, line[2:])
            here = []
            articles.setdefault(section, []).append({"context": text, "qas": here})
        elif line and not line.startswith("#"):
            question, answer = line.split(" | ")
            here.append(_question(text, question, answer))
    data = [{"title": title, "paragraphs": found} for title, found in articles.items()]
    whole = {"version": "1.1", "data": data}
    return json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _paragraphs(source: str) -> list[tuple[str, str]]:
    """The handbook's paragraphs of sentences, each with its section's title."""
    found, section = [], ""
    for line in source.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line and line[0] not in "#|!":
            found.append((section, line))
    return found


def _starting(paragraphs: list[tuple[str, str]], words: str) -> tuple[str, str]:
    found = [one for one in paragraphs if one[1].startswith(words)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} paragraphs start with {words!r}")
    return found[0]


def _question(text: str, question: str, answer: str) -> dict[str, Any]:
    place = text.find(answer)
    if place < 0:
        raise ValueError(f"{answer!r} does not stand in {text[:60]!r}")
    name = hashlib.sha256(f"{text}\n{question}".encode()).hexdigest()[:16]
    answers = [{"text": answer, "answer_start": place}]
    return {"id": name, "question": question, "answers": answers}


if __name__ == "__main__":
    made = built()
    if "--check" in sys.argv:
        fresh = TARGET.exists() and TARGET.read_text("utf-8") == made
        sys.exit(0 if fresh else f"{TARGET.name} is not what {Path(__file__).name} makes; run it.")
    TARGET.write_text(made, "utf-8")
