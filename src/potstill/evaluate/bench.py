"""The models of an evaluation and the examples that they are held to, scored part by part.

In: the stage's configuration and inputs, a folder to work in. Out: each model's `ScoredAnswer`s. A
part is some of the examples; what is finished of it stays in the folder, so that a killed
evaluation goes on from there, and whoever can open the folder may do a part. The teacher's parts
come first, as it leaves the states that the others are compared with. Knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from potstill.core.files import read_json, read_records, write_json
from potstill.core.stage import Artifact
from potstill.errors import InputError
from potstill.evaluate.config import EvaluateConfig
from potstill.evaluate.encode import TEACHER, Encoded, encode_examples
from potstill.evaluate.forward import head_of, load_here
from potstill.evaluate.scan import Held, ScanSettings, ScoredAnswer, scan
from potstill.evaluate.sources import Source, models_of
from potstill.models.load import load_tokenizer
from potstill.models.output import OutputLayer
from potstill.models.prefix_reader import Plan
from potstill.models.size import longest_text
from potstill.records import Example, Rejected


@dataclass(frozen=True)
class Part:
    """Some of the examples. places: their numbers, in the order in which they are read."""

    number: int
    count: int
    places: tuple[int, ...]

    @property
    def label(self) -> str:
        """What its files are called."""
        return f"{self.number}-of-{self.count}"


@dataclass
class Bench:
    """What parts are scored with. examples: those of the test set; too_long: of these, the ones
    that some model cannot read, which are not scored."""

    config: EvaluateConfig
    sources: list[Source]
    encoded: Encoded
    work: Path
    examples: list[Example]
    too_long: list[Rejected]
    limit: int
    """Tokens that an example may have."""
    _head: OutputLayer | None = field(default=None, repr=False)

    @property
    def held(self) -> list[Held]:
        """The examples that are scored, in the teacher's tokens."""
        return self.encoded.held[TEACHER]

    def parts(self, count: int) -> list[Part]:
        """The examples in so many parts of whole batches, or fewer where there are not as many
        batches: answers are written together with the same others as in one part."""
        order = [index for index, _ in Plan.of([one.encoded.ids for one in self.held])]
        size = self.config.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        count = max(1, min(count, len(batches)))
        cuts = [len(batches) * number // count for number in range(count + 1)]
        return [
            Part(
                number + 1, count, tuple(place for batch in batches[first:last] for place in batch)
            )
            for number, (first, last) in enumerate(pairwise(cuts))
        ]

    def done(self, name: str, part: Part) -> bool:
        """Whether that model's part is finished."""
        return self._file(name, part).exists()

    def score(self, name: str, part: Part, tell: Callable[[int], None] = lambda done: None) -> None:
        """Score one model on one part. tell: hears how many examples of it are done.

        Errors: ModelError for a model that cannot be measured.
        """
        (source,) = (one for one in self.sources if one.name == name)
        some = self.encoded.part(part.places)
        tokenizer = load_tokenizer(source.folder)
        states = self.work / "states" / part.label
        states.mkdir(parents=True, exist_ok=True)
        settings = ScanSettings(
            states=states,
            vocabulary=max(tokenizer.get_vocab().values()) + 1,
            answer_tokens=self.config.answer_tokens,
            batch_size=self.config.batch_size,
            projection_rows=self.config.projection_rows,
            decoding=self.config.decoding,
        )
        compared = name != TEACHER and not some.aligned
        head = self._teachers_head(settings.vocabulary) if compared else None
        answers = scan(
            name,
            load_here(source.folder, self.config.dtype),
            tokenizer,
            some.held[name],
            head,
            settings,
            tell,
            apart=some.apart(name, states),
        )
        write_json(self._file(name, part), [answer.as_dict() for answer in answers])

    def scored(self, parts: Sequence[Part]) -> dict[str, list[ScoredAnswer]]:
        """Every model's answers in the examples' order, when all parts are finished."""
        found = {}
        for source in self.sources:
            answers: dict[int, ScoredAnswer] = {}
            for part in parts:
                values = read_json(self._file(source.name, part))
                for place, value in zip(part.places, values, strict=True):
                    answers[place] = ScoredAnswer.from_dict(value)
            found[source.name] = [answers[place] for place in range(len(self.held))]
        return found

    def _file(self, name: str, part: Part) -> Path:
        return self.work / f"{name}-{part.label}.json"

    def _teachers_head(self, vocabulary: int) -> OutputLayer:
        """The teacher's output layer alone; the rest of it is freed."""
        if self._head is None:
            teacher = load_here(self.sources[0].folder, self.config.dtype)
            self._head = head_of(teacher, vocabulary)
        return self._head


def bench_of(config: EvaluateConfig, inputs: Mapping[str, Artifact], work: Path) -> Bench:
    """The models and the test examples that fit. Scores nothing.

    Errors: InputError for an empty test set; ModelError for a model that is not there.
    """
    sources = models_of(config.teacher, inputs["correct"], inputs["distill"])
    examples = _examples(inputs["curate"].path("test.jsonl"), config.max_examples)
    limit = _longest(config, sources)
    folders = {source.name: source.folder for source in sources}
    encoded, too_long = encode_examples(examples, folders, limit, config.template)
    return Bench(config, sources, encoded, work, examples, too_long, limit)


def _examples(test_file: Path, limit: int | None) -> list[Example]:
    """The test rows in the order of their ids, whatever order the file has them in."""
    rows = sorted(read_records(test_file, Example), key=lambda example: example.id)
    if not rows:
        raise InputError(
            f"The test set {test_file} is empty: there is nothing to measure on.",
            "Give more documents, or raise the share of rows that is kept for the test set.",
        )
    return rows[:limit]


def _longest(config: EvaluateConfig, sources: Sequence[Source]) -> int:
    """Tokens that an example may have: the recipe's limit, and room to answer in every model."""
    windows = [longest_text(source.folder) for source in sources]
    room = max(config.answer_tokens, config.speed_tokens)
    return min([config.max_tokens, *(window - room for window in windows if window)])
