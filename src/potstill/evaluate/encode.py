"""Held-out examples as each model's own token ids.

In: examples, the models' folders. Out: `Encoded`: the examples that fit, in every model's tokens,
and where the tokenizers differ the spans of text that both cut them into. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.evaluate.answer_scores import gold_of
from potstill.evaluate.apart import Apart
from potstill.evaluate.scan import Held
from potstill.models.align import Aligner, Span, Words
from potstill.models.chat import EncodedExample, encode_example
from potstill.models.load import load_tokenizer
from potstill.records import Example, Rejected

TEACHER, UNCORRECTED = "teacher", "uncorrected"


@dataclass(frozen=True)
class Encoded:
    """`held`: of each model, the same examples in the same order.

    `aligned`: if the students' tokenizer is not the teacher's, of each example its spans, and both
    vocabularies; the student's side is the first.
    """

    held: dict[str, list[Held]]
    spans: list[tuple[Span, ...]] = field(default_factory=list)
    aligned: tuple[Words, Words] | None = None
    as_teacher: frozenset[str] = frozenset({TEACHER})
    """The models that have the teacher's tokens."""

    def part(self, places: Sequence[int]) -> Encoded:
        """The same of some of the examples, in that order."""
        held = {name: [some[place] for place in places] for name, some in self.held.items()}
        return replace(
            self, held=held, spans=[self.spans[place] for place in places] if self.spans else []
        )

    def apart(self, name: str, states: Path) -> Apart | None:
        """What compares that model with its teacher where the tokenizers differ."""
        if self.aligned is None:
            return None
        return Apart(self.spans, self.aligned, states, name == TEACHER, name in self.as_teacher)


def encode_examples(
    examples: Sequence[Example], folders: Mapping[str, Path], limit: int, template: str = ""
) -> tuple[Encoded, list[Rejected]]:
    """Encode, and set aside what is longer than `limit` tokens in any model.

    folders: of the models, the teacher first. template: a chat template instead of their own.
    Errors: ModelError for a student that turns an example into other tokens of the teacher's own
    vocabulary, and for students that differ in theirs.
    """
    tokenizers = {name: load_tokenizer(folder, template) for name, folder in folders.items()}
    teacher = tokenizers[TEACHER]
    students = {name: one for name, one in tokenizers.items() if name not in (TEACHER, UNCORRECTED)}
    others = [name for name, one in students.items() if one.get_vocab() != teacher.get_vocab()]
    if others and len(others) < len(students):
        raise ModelError(
            f"The tokenizer of {', '.join(others)} is not that of the other students.",
            "Students that are compared must share a tokenizer.",
        )
    aligner = Aligner(students[others[0]], teacher) if others else None
    as_teacher = frozenset(tokenizers.keys() - others)
    words = aligner.words if aligner else None
    found = Encoded({name: [] for name in folders}, [], words, as_teacher)
    too_long = []
    for example in examples:
        encoded = {
            name: encode_example(one, example.turns, limit) for name, one in tokenizers.items()
        }
        _check_equal(example, encoded, others)
        if any(one.truncated for one in encoded.values()):
            detail = f"longer than {limit} tokens"
            row = example.model_dump(mode="json")
            too_long.append(
                Rejected(id=example.id, stage="evaluate", reason="too_long", detail=detail, row=row)
            )
            continue
        gold, sizes = gold_of(example), _sizes(teacher, encoded[TEACHER])
        for name, one in encoded.items():
            found.held[name].append(Held(example.id, one, gold, sizes))
        if aligner is not None:
            _, aligned = aligner.example(example.turns, limit)
            found.spans.append(tuple(span for span in aligned.spans if span.predicted))
    return found, too_long


def _sizes(tokenizer: Any, encoded: EncodedExample) -> tuple[int, int]:
    """Bytes of the text after the first token, and of the answer; special tokens by their names."""
    text, answer = (
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (encoded.ids[1:], encoded.answer)
    )
    return len(text.encode()), len(answer.encode())


def _check_equal(
    example: Example, encoded: Mapping[str, EncodedExample], others: Sequence[str]
) -> None:
    """Those with one tokenizer must encode the example alike."""
    for name, one in encoded.items():
        first = others[0] if name in others else TEACHER
        if one != encoded[first]:
            whom = "the other students" if name in others else "its teacher"
            raise ModelError(
                f"The {name} model and {whom} turn example {example.id} into "
                "different tokens, so their distributions cannot be compared token by token.",
                "Models that share a tokenizer must share its chat template.",
            )
