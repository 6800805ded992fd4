"""One model over all held-out examples: fidelity to the teacher and a generated answer each.

In: a model, the encoded examples, the teacher's output layer, a folder of the teacher's states.
Out: one `ScoredAnswer` an example, in the examples' order. Knows nothing of stages.

The teacher goes first: its new hidden states are written to the folder, one file an example
(disk: tokens x width x bytes of the dtype, shared beginnings once), and every student reads
them back. So the teacher's body runs once, whatever the number of students, and memory stays
flat whatever the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from potstill.evaluate.answer_scores import AnswerScores, Gold, score_answer
from potstill.evaluate.answers import ReadPrompt, write_answers
from potstill.evaluate.apart import Apart, SpanScores
from potstill.evaluate.config import Decoding
from potstill.evaluate.fidelity import ROWS, FidelityScores, example_scores, row_scores
from potstill.evaluate.forward import check_model, head_of, not_finite
from potstill.evaluate.metrics import ExampleScores
from potstill.models.chat import EncodedExample
from potstill.models.output import OutputLayer
from potstill.models.prefix_reader import Plan, PrefixReader
from potstill.models.sampling import Draw, end_tokens
from potstill.records import short_id


@dataclass(frozen=True)
class Held:
    """A held-out example, ready for any model."""

    id: str
    encoded: EncodedExample
    gold: Gold
    sizes: tuple[int, int] = (0, 0)
    """Bytes of the text after its first token, and of the answer with its end."""


@dataclass(frozen=True)
class ScoredAnswer:
    """What one model said to one example, and its scores."""

    answer: str
    finished: bool
    scores: ExampleScores

    def as_dict(self) -> dict[str, Any]:
        """A JSON value that `from_dict` reads back without loss."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ScoredAnswer:
        """The inverse of `as_dict`."""
        scores = value["scores"]
        fidelity = read_fidelity(scores["fidelity"])
        return cls(
            value["answer"],
            value["finished"],
            ExampleScores(fidelity, AnswerScores.from_dict(scores["answer"])),
        )


def read_fidelity(value: Mapping[str, Any]) -> FidelityScores | SpanScores:
    """The inverse of `asdict` of either."""
    return SpanScores(**value) if "spans" in value else FidelityScores(**value)


@dataclass(frozen=True)
class ScanSettings:
    """What all models of a comparison share."""

    states: Path
    vocabulary: int
    answer_tokens: int
    batch_size: int
    projection_rows: int
    decoding: Decoding = field(default_factory=lambda: Decoding())


def draw_of(decoding: Decoding, row: str) -> Draw | None:
    """What chooses the tokens of that row's answer; None: greedy."""
    if decoding.temperature == 0:
        return None
    seed = int(short_id(str(decoding.seed), row), 16) >> 1  # torch takes 63 bits
    return Draw(seed, decoding.temperature, decoding.top_p, decoding.top_k)


@torch.inference_mode()
def scan(
    name: str,
    model: Any,
    tokenizer: Any,
    held: Sequence[Held],
    teacher_head: OutputLayer | None,
    settings: ScanSettings,
    tell: Callable[[int], None] = lambda done: None,
    *,
    apart: Apart | None = None,
) -> list[ScoredAnswer]:
    """Score one model; `teacher_head` None means that this model is the teacher.

    apart: if teacher and students have different tokenizers; `held` is in this model's tokens.

    `tell` hears how many examples are done. Errors: ModelError for a model that cannot be
    measured, or whose logits are not finite.
    """
    head = head_of(model, settings.vocabulary)
    check_model(model, head, held[0].encoded.ids, name)
    ends = end_tokens(model, tokenizer)
    reader = PrefixReader(model)
    rows = torch.zeros(len(ROWS) if apart is None else 2, 0, dtype=torch.float64)
    fidelity: dict[int, FidelityScores | SpanScores] = {}
    found: dict[int, ScoredAnswer] = {}
    waiting: dict[int, ReadPrompt] = {}

    def answer_waiting() -> None:
        prompts = list(waiting.values())
        answers = write_answers(model, prompts, ends, settings.answer_tokens, settings.vocabulary)
        for index, answer in zip(waiting, answers, strict=True):
            text = tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
            scores = ExampleScores(fidelity[index], score_answer(text, held[index].gold))
            found[index] = ScoredAnswer(text, answer.finished, scores)
        waiting.clear()
        tell(len(found))

    for index, shared in Plan.of([example.encoded.ids for example in held]):
        ids, start = held[index].encoded.ids, held[index].encoded.answer_start
        hidden = reader.read(ids, shared)
        new = slice(shared, len(ids) - 1)
        targets = torch.tensor(ids[1:], device=hidden.device)[new]
        if apart is not None:
            fresh = apart.rows(hidden[new], targets, head, settings.projection_rows)
        else:
            file = settings.states / f"{index:06d}.safetensors"
            if teacher_head is None:
                save_file({"hidden": hidden[new].contiguous()}, file)
            fresh = row_scores(
                load_file(file, device=str(hidden.device))["hidden"],
                hidden[new],
                targets,
                teacher_head or head,
                head,
                settings.projection_rows,
            )
        rows = torch.cat([rows[:, :shared], fresh.cpu()], dim=1)
        if not torch.isfinite(rows).all():
            raise not_finite(name)
        sizes = held[index].sizes
        fidelity[index] = apart.sums(index, rows) if apart else example_scores(rows, start, sizes)
        draw, logits = (
            draw_of(settings.decoding, held[index].id),
            head.logits(hidden[start - 1 : start])[0],
        )
        first = int((logits if draw is None else draw.noisy(logits)).argmax())
        waiting[index] = ReadPrompt(reader.prefix(start), start, first, draw)
        if len(waiting) == settings.batch_size:
            answer_waiting()
    if waiting:
        answer_waiting()
    return [found[index] for index in range(len(held))]
