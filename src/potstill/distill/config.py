"""What can be set about distillation. Light: no torch here.

In: the recipe's `distill` section. Out: `DistillConfig`, and what it shares with every other
training (`correct_config.py`). Knows nothing of how training works.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from potstill.distill.chain_config import AssistantConfig
from potstill.distill.objective import Objective
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.residence import why_resident
from potstill.distill.schedules import ever
from potstill.distill.student_config import StudentConfig
from potstill.distill.teachers_config import TeacherConfig
from potstill.distill.training_config import TrainingConfig
from potstill.models.adapter_config import AdapterKind, Precision


class DistillConfig(TrainingConfig, Objective):
    """Rows and teacher -> student. The fields of the loss are those of `Objective`."""

    teacher: str = Field("", description="Model reference of the teacher.")
    teachers: tuple[TeacherConfig, ...] = Field(
        (),
        description="Several teachers of one vocabulary, instead of the one above. The student is "
        "cut from the first, whose template all rows go through.",
    )
    teacher_weighting: Literal["fixed", "confidence"] = Field(
        "fixed",
        description="The share of each of several teachers in a token. fixed: its weight. "
        "confidence: its weight times the probability of its likeliest word there. Shares are "
        "divided by their sum.",
    )
    student: StudentConfig = Field(
        default_factory=lambda: StudentConfig(), description="Where the student comes from."
    )
    assistants: tuple[AssistantConfig, ...] = Field(
        (),
        description="Models between teacher and student, from large to small: each is cut from the "
        "one before, distilled, and teaches the next.",
    )

    passages: bool = Field(
        False, description="Also imitate the teacher on the bare text of the training chunks."
    )

    baseline: bool = Field(
        True,
        description="Train the same student on the rows alone too, for as many steps, to compare "
        "with: what the teacher brings. false takes as good as half of the training's time away.",
    )

    signal: Literal["auto", "live", "hidden_bf16", "hidden_int8", "top_k", "sampled"] = Field(
        "auto",
        description="Where the teacher's distribution comes from. live: its forward pass at every "
        "step. The others are files that are written once: its last hidden states in bf16 or int8, "
        "which give the whole distribution; its signal_count likeliest words and the mass of all "
        "others; signal_count words drawn by lot, whose mean is its distribution. auto: "
        "hidden_bf16 if rows are seen again and the file stays below 8 GiB, else live.",
    )
    signal_count: int = Field(
        64, ge=1, le=1024, description="Words a token in top_k and sampled files."
    )

    teacher_precision: Precision = Field(
        "full",
        description="Of the teacher's linear layers, but its output layer. 8bit: int8 by rows. "
        "4bit: NF4 with double quantisation, by bitsandbytes. Less memory, more time; what the "
        "teacher says changes, and the event teacher_kl says by how much.",
    )
    teacher_loading: Literal["auto", "resident", "streamed"] = Field(
        "auto",
        description="resident: the whole teacher in memory. streamed: its decoder layers are read "
        "one at a time and computed for all rows, before the training; the same signals, from a "
        "teacher larger than memory. It needs a signal from a file. auto: streamed if teacher and "
        "training do not fit into the memory that is free.",
    )
    adapter: AdapterKind = Field(
        "none",
        description="Train all weights, or low-rank adapters that are merged at the end. lora: "
        "two small matrices a layer. dora: also each row's length. qlora: lora on weights in 4 "
        "bits (NF4), for less memory; merged into the dequantised weights.",
    )
    keep_adapter: bool = Field(
        False,
        description="Keep the distilled student's adapter beside the merged student, in PEFT's "
        "format, with the digest of the base it belongs to.",
    )

    term_gradients: bool = Field(
        True,
        description="At the first step and after each validation, measure each term's gradient "
        "norm on a few rows of the step.",
    )

    on_policy: OnPolicyConfig = Field(
        default_factory=lambda: OnPolicyConfig(),
        description="The student's own answers, judged by the live teacher, instead of the rows'.",
    )

    @property
    def objective(self) -> Objective:
        """The fields of the loss alone."""
        return Objective(**{name: getattr(self, name) for name in Objective.model_fields})

    @property
    def voices(self) -> tuple[TeacherConfig, ...]:
        """All teachers, each with its reference; one if `teachers` names none."""
        given = self.teachers or (TeacherConfig(),)
        return tuple(
            one.model_copy(update={"teacher": one.teacher or self.teacher}) for one in given
        )

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        if self.needs_live_teacher and self.signal not in ("auto", "live"):
            raise ValueError(
                f"signal: {self.signal} holds no layers of the teacher, which hidden and attention "
                "need; use live"
            )
        # Whether the student is cut from the teacher is not known here: `loading.check`.
        reason = why_resident(self, cuts=False)
        if self.teacher_loading == "streamed" and reason is not None:
            what, way_out = reason
            raise ValueError(f"{what}; teacher_loading: streamed does not. {way_out}")
        if self.signal == "sampled" and set(self.shares) != {"forward_kl"}:
            raise ValueError(
                "signal: sampled is unbiased for divergence: forward_kl alone; use another signal"
            )
        if self.alignment.used and self.signal in ("top_k", "sampled"):
            raise ValueError(
                f"signal: {self.signal} keeps words of the teacher's vocabulary, which the student "
                "of another does not have; with alignment use live, hidden_bf16 or hidden_int8"
            )
        if self.alignment.used and self.on_policy.used:
            raise ValueError(
                "on_policy: the teacher judges the student's own answers token by token, which "
                "needs one tokenizer; set alignment.method: none or on_policy.share: 0"
            )
        if self.sharding != "none" and (self.adapter != "none" or self.needs_live_teacher):
            raise ValueError(
                f"sharding: {self.sharding} is for all weights and the loss of words; adapters, "
                "hidden and attention need the whole student: use sharding: none"
            )
        if self.on_policy.used:
            self._rollouts_fit()
        if self.on_policy.used and self.processes not in (1, "auto"):
            raise ValueError(
                "on_policy: the student's own answers are generated by one process; use "
                "processes: 1"
            )
        if self.student.steps > 1 and not (ever(self.kd_weight) or ever(self.ce_weight)):
            raise ValueError(
                "student.steps trains between cuts by divergence and cross-entropy, and both have "
                "a weight of 0; use steps: 1"
            )
        if self.keep_adapter and self.adapter == "none":
            raise ValueError("keep_adapter needs an adapter: lora, dora or qlora")
        if self.adapter == "qlora" and self.lora.init == "orthogonal":
            raise ValueError("lora.init: orthogonal does not go together with adapter: qlora")
        if self.student.vocabulary is not None and (found := self.against_fewer_words):
            raise ValueError(f"student.vocabulary does not go together with {found[0]}")
        if len(self.teachers) > 1:
            self._several_fit()
        if self.needs_live_teacher and len(self.teachers) > 1:
            raise ValueError(
                "hidden and attention compare the layers of one teacher; teachers names several"
            )
        if self.teacher_weighting == "confidence" and len(self.teachers) < 2:
            raise ValueError("teacher_weighting: confidence is for several teachers")
        if self.teacher_weighting == "confidence" and self.signal == "sampled":
            raise ValueError(
                "teacher_weighting: confidence needs the likeliest word, which signal: sampled "
                "does not hold"
            )
        sizes = [one.parameters_ratio for one in self.assistants]
        if self.assistants and self.student.model is not None:
            raise ValueError(
                "assistants stand between a teacher and a student that is cut from it; leave out "
                "student.model, or the assistants"
            )
        if self.assistants and self.on_policy.replay is not None:
            raise ValueError(
                "on_policy.replay holds answers of the student and none of its assistants; leave "
                "out the assistants, or the replay"
            )
        if self.assistants and self.student.size != "parameters_ratio":
            raise ValueError(
                f"with assistants, give student.parameters_ratio, not {self.student.size}"
            )
        if self.assistants and self.student.start != "teacher":
            raise ValueError("student.start: uncorrected does not go together with assistants")
        if any(a <= b for a, b in pairwise([*sizes, self.student.ratio])):
            raise ValueError(
                "assistants must become smaller, and the student smaller than the last: "
                "parameters_ratio is a share of the teacher"
            )
        if self.attention.used and self.gradient_checkpointing:
            raise ValueError("attention.weight does not go together with gradient_checkpointing")
        if self.attention.used and self.batching == "buckets":
            raise ValueError("attention.weight needs batching: packed")
        return self

    @property
    def against_fewer_words(self) -> list[str]:
        """What `student.vocabulary` does not go together with: the one teacher is copied with fewer
        words, and the student cut from the copy."""
        together = {
            "several teachers": len(self.teachers) > 1,
            "assistants": bool(self.assistants),
            "alignment": self.alignment.used,
            "student.start: uncorrected": self.student.start == "uncorrected",
            "student.drop_layers": self.student.drop_layers is not None,
        }
        return [name for name, there in together.items() if there]

    def _several_fit(self) -> None:
        """Errors: ValueError for settings that are for one teacher."""
        alone = {
            "on_policy": self.on_policy.used,
            "alignment": self.alignment.used,
            "teacher_precision": self.teacher_precision != "full",
            "teacher_loading: streamed": self.teacher_loading == "streamed",
        }
        for name, asked in alone.items():
            if asked:
                raise ValueError(f"{name} is for one teacher; teachers names several")

    def _rollouts_fit(self) -> None:
        """Errors: ValueError for settings that on-policy training cannot keep."""
        if self.signal not in ("auto", "live"):
            raise ValueError(
                f"signal: {self.signal} is a file, which holds nothing about the answers that "
                "on_policy generates; use live"
            )
        if not (ever(self.kd_weight) or self.needs_live_teacher):
            raise ValueError(
                "on_policy.share: nothing counts on the student's own answers while kd_weight is 0"
            )
        if self.on_policy.nothing_else and ever(self.ce_weight) and not self.passages:
            raise ValueError(
                "on_policy.share: 1 leaves no row to the cross-entropy; set ce_weight: 0"
            )
        if self.on_policy.replay is None and self.on_policy.batch_tokens < self.sequence_tokens:
            raise ValueError("on_policy.batch_tokens must not be smaller than sequence_tokens")
