"""The sample's questions: fresh from their source, and each answer stands where it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from potstill.sample import sample_path

TOOL = Path(__file__).parents[3] / "tools" / "make_squad.py"


def test_the_file_is_what_its_source_makes() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_answer_stands_in_its_paragraph() -> None:
    data = json.loads(sample_path("handbook-squad.json").read_text("utf-8"))["data"]
    names = set()
    for article in data:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                (answer,) = question["answers"]
                start, text = answer["answer_start"], answer["text"]
                assert paragraph["context"][start : start + len(text)] == text
                names.add(question["id"])
    assert len(data) == 15
    assert len(names) == 246
