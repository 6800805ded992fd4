"""A recipe's trainings as the cost model knows them.

In: the recipe's correct and distill sections, the stages' figures, a cluster. Out: a `Case`: what
is trained, and how many tokens. Knows no rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from potstill.core.stage import Figures
from potstill.costs import decoder
from potstill.costs.binding import Phase
from potstill.costs.cluster import Cluster
from potstill.costs.serving import writing
from potstill.costs.training import Training
from potstill.distill import CorrectConfig, DistillConfig
from potstill.distill.extractive import SpanDistillConfig
from potstill.distill.plan import (
    ANSWER_TOKENS,
    budget_tokens,
    computed_share,
    row_tokens,
    signal_bytes,
    student_parameters,
)
from potstill.distill.training_config import TrainingConfig
from potstill.models.encoder import encoder_parameters

ANSWERS_AT_ONCE = 16
"""Of the student's own, about: `docs/experiments.md` measured so many."""
AUTO_LARGEST = 8 << 30
"""Bytes of a file that `signal: auto` still writes."""


@dataclass(frozen=True)
class Case:
    """A training, the tokens that are computed in it, and those of the one it is compared with."""

    one: Training
    tokens: float
    compared: float = 0.0
    before: tuple[tuple[Training, float], ...] = ()
    """Those of the assistants."""
    answers: float = 0.0
    """That the student itself writes (on policy)."""
    answer_tokens: float = 0.0

    def trainings(self) -> Iterator[tuple[Training, float]]:
        """Each with its tokens; the comparison asks no teacher and reads no file."""
        yield from self.before
        yield self.one, self.tokens
        if self.compared:
            bare = replace(self.one, teacher=None, teacher_held="nothing", signal_bytes=0.0)
            yield bare, self.compared

    def writing(self, cluster: Cluster) -> list[Phase]:
        """The student's own answers, on all ranks."""
        if not self.answers:
            return []
        prompt = 2 * self.one.seen
        read, written = self.answers * prompt, self.answers * self.answer_tokens
        return writing(self.one.student, read, written, ANSWERS_AT_ONCE, prompt, cluster)


def distillation(config: DistillConfig, figures: Mapping[str, Figures], cluster: Cluster) -> Case:
    """The student's training; several teachers of one step are as many of the first."""
    teacher = decoder.of_reference(config.voices[0].teacher)
    student = _student(config, teacher)
    computed = computed_share(config, figures)
    tokens = computed * budget_tokens(config, figures)
    kind = _kind(config, figures, teacher)
    held = {"live": "live", "top_k": "nothing", "sampled": "nothing"}.get(kind, "output")
    stored = signal_bytes(config.model_copy(update={"signal": kind}), teacher.hidden)
    one = Training(
        student,
        teacher,
        held,  # type: ignore[arg-type]
        config.adapter,
        config.teacher_precision,
        config.micro_tokens,
        max(1.0, computed * config.step_tokens),
        row_tokens(figures) / 2,
        config.gradient_checkpointing,
        signal_bytes=stored,
        **_zero(config),
    )
    between = (config.student.steps - 1) * config.student.step_share * tokens
    length = min(row_tokens(figures), config.sequence_tokens)
    asked = config.on_policy.used and config.on_policy.replay is None
    answers = asked * config.on_policy.mean_share * budget_tokens(config, figures) / length
    return Case(
        one,
        tokens + between,
        config.baseline * tokens,
        tuple(_assistants(config, figures, one, computed)),
        answers,
        min(ANSWER_TOKENS, config.on_policy.max_new_tokens),
    )


def _assistants(
    config: DistillConfig, figures: Mapping[str, Figures], one: Training, computed: float
) -> Iterator[tuple[Training, float]]:
    """Each with its tokens, taught as the student is."""
    assert one.teacher is not None
    for each in config.assistants:
        own = {"epochs": each.epochs, "max_tokens": each.max_tokens}
        given = {name: value for name, value in own.items() if value is not None}
        tokens = computed * budget_tokens(config.model_copy(update=given), figures)
        yield (
            replace(one, student=one.teacher.shrunk(each.parameters_ratio * one.teacher.weights)),
            tokens,
        )


def _student(config: DistillConfig, teacher: decoder.Decoder) -> decoder.Decoder:
    if config.student.model is not None:
        return decoder.of_reference(config.student.model)
    return teacher.shrunk(student_parameters(config))


def _kind(config: DistillConfig, figures: Mapping[str, Figures], teacher: decoder.Decoder) -> str:
    """The signal that `auto` comes to: as the recipe's description of the field says."""
    if config.on_policy.used or config.needs_live_teacher:
        return "live"
    if config.signal != "auto":
        return config.signal
    rows = figures["curate"]["train_rows"] * min(row_tokens(figures), config.sequence_tokens)
    again = budget_tokens(config, figures) > rows
    return "hidden_bf16" if again and 1.4 * teacher.hidden * rows < AUTO_LARGEST else "live"


def correction(config: CorrectConfig, figures: Mapping[str, Figures]) -> Case:
    """The teacher's own training by the cross-entropy."""
    computed = computed_share(config, figures)
    one = Training(
        decoder.of_reference(config.teacher),
        adapter="lora" if config.method == "lora" else "none",
        micro_tokens=config.micro_tokens,
        step_tokens=max(1.0, computed * config.step_tokens),
        seen=row_tokens(figures) / 2,
        checkpointed=config.gradient_checkpointing,
        **_zero(config),
    )
    return Case(one, computed * figures["correct"].get("tokens", 0.0))


def _zero(config: TrainingConfig) -> dict[str, Any]:
    """What DeepSpeed changes; its stage 3 is reckoned as shards are."""
    if config.sharding != "deepspeed":
        return {}
    one = config.deepspeed
    return {"zero": one.zero_stage % 3, "offloaded": one.offload_optimizer}


def spans(config: SpanDistillConfig, figures: Mapping[str, Figures]) -> Case:
    """The encoder's trainings, reckoned as a decoder of its size that sees whole windows."""
    step = float(config.batch_size * config.window_tokens)
    one = Training(
        decoder.of_size(encoder_parameters(config.student.model)),
        micro_tokens=min(step, config.micro_tokens),
        step_tokens=step,
        seen=config.window_tokens,
        scored=0.0,
    )
    return Case(one, figures["distill"].get("tokens", 0.0))
