"""What a recipe may say about generation: the teacher, how it is asked, how often.

In: fields. Out: a validated, immutable config. Knows no model and no file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.stage import StageConfig
from potstill.generate import languages, wording
from potstill.generate.filling import check
from potstill.generate.focus import Kind
from potstill.generate.judging import JudgePrompt
from potstill.generate.kinds import AnyKind, ChunkKind, FocusKind
from potstill.generate.paraphrase_config import ParaphraseConfig
from potstill.inference.base import LocalBackend
from potstill.inference.budget import BudgetConfig
from potstill.inference.endpoint import EndpointConfig, mismatch


class Shot(BaseModel):
    """One worked example that the teacher sees before the real passage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passage: str = Field(min_length=1, description="A short passage.")
    focus: str = Field(min_length=1, description="The sentence of it that is asked about.")
    question: str = Field(min_length=1, description="A question about that sentence.")
    reasoning: str = Field(
        min_length=1, description="Why the answer is right; it holds the answer."
    )
    answer: str = Field(min_length=1, description="Words copied from the sentence.")

    @model_validator(mode="after")
    def is_a_good_example(self) -> Shot:
        """A worked example that breaks the rules teaches the teacher to break them."""
        if self.focus not in self.passage:
            raise ValueError("the focus must stand in the passage, word for word")
        if self.answer not in self.focus:
            raise ValueError("the answer must stand in the focus, word for word")
        if self.answer not in self.reasoning:
            raise ValueError("the reasoning must hold the answer, word for word")
        return self


class PromptConfig(BaseModel):
    """How the teacher is asked, and how the student will be. Replace any part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("extractive-qa", min_length=1, description="Name that rows are marked with.")
    version: int = Field(1, ge=1, description="Raise it when you change the words.")
    system: str = Field(wording.SYSTEM, description="System turn for the teacher; empty for none.")
    ask: str = Field(
        wording.ASK,
        description="The teacher's user turn. {focus} is the sentence to ask about, {answer} "
        "the words of it that the question is for, {passage} the whole chunk.",
    )
    shots: tuple[Shot, ...] = Field(
        tuple(Shot(**shot) for shot in wording.SHOTS),
        description="Worked examples, shown as turns before the real one.",
    )
    openings: dict[Kind, tuple[str, ...]] = Field(
        wording.OPENINGS,
        description="First words of a question, by the kind of its answer; a question may start "
        "with nothing else.",
    )
    in_place_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the questions that are their sentence with a question word in the "
        "answer's place (the lamp burns for how many hours?). Above 0, every further attempt at "
        "any question takes this form too. A small teacher gets few free questions right.",
    )
    vocabulary: tuple[str, ...] = Field(
        wording.VOCABULARY,
        description="Words a question may use besides those of its passage; others show that the "
        "teacher invented something. Empty: any words.",
    )
    student: str = Field(
        wording.STUDENT,
        description="The user turn of the resulting row: what the student will be asked. "
        "{passage} and {question}.",
    )

    @model_validator(mode="after")
    def placeholders_fit(self) -> PromptConfig:
        """A missing placeholder would make every prompt the same."""
        check("ask", self.ask, {"focus", "answer"}, {"focus", "answer", "passage"})
        check("student", self.student, {"question"}, {"question", "passage"})
        if not any(self.openings.values()):
            raise ValueError("openings holds no words, so no question could be asked")
        return self

    @property
    def label(self) -> str:
        """Name and version, for provenance."""
        return f"{self.name}@{self.version}"


class GenerateConfig(StageConfig):
    """How rows are made from chunks, and varied."""

    # A reply depends on its request alone (inference/llamacpp.py), not on how many run at once.
    # What a reply does depend on of its endpoint is a fact of the stage (plan.py).
    not_in_key: ClassVar[frozenset[str]] = frozenset({"parallel", "endpoint", "budget"})

    teacher: str = Field(
        "",
        description="Model reference of the teacher, openai:MODEL for one behind an address, or "
        "plugin:NAME for a plug-in's; empty: the recipe's teacher.",
    )
    endpoint: EndpointConfig | None = Field(
        None, description="The address of a teacher openai:MODEL, its keys and limits."
    )
    budget: BudgetConfig = Field(
        default_factory=lambda: BudgetConfig(), description="The most that the teacher may cost."
    )
    backend: LocalBackend = Field(
        "auto",
        description="Engine: llama.cpp for GGUF files and transformers for the rest (auto), one "
        "of them, vllm for many requests at once on a GPU, or a fake that needs no model.",
    )
    kinds: tuple[AnyKind, ...] = Field(
        (FocusKind(),),
        min_length=1,
        description="What rows are asked for: focus, qa, extractive, conversation, "
        "multiple_choice, fill_in_the_blank, summary, refusal; each a section with its own fields.",
    )
    language: str = Field(
        "",
        pattern=r"^([a-z]{2})?$",
        description="ISO 639-1 code of the language that rows are written in; empty: that of the "
        "passage, and English around it.",
    )
    min_support: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Share of an answer's telling words that must stand near the sentence it rests "
        "on; 0 where rows are in another language than the documents.",
    )
    judge: Literal["none", "teacher"] = Field(
        "none",
        description="Whether the teacher is asked if the passage supports each row, and if each "
        "paraphrase asks the same; one more request a row.",
    )
    judge_prompt: JudgePrompt = Field(JudgePrompt(), description="How the judge is asked.")
    paraphrases: tuple[ParaphraseConfig, ...] = Field(
        (), description="Variants of every row's question, each by a teacher and in a tone."
    )
    pairs_per_chunk: int = Field(
        12,
        ge=1,
        le=1000,
        description="Most question-answer pairs asked for from one chunk by the kind focus.",
    )
    attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="How often one thing is asked for: focus each time with a new seed, the other "
        "kinds with the failed reply and what was wrong with it.",
    )
    temperature: float = Field(0.4, ge=0, le=2, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus of tokens that are sampled from.")
    max_tokens: int = Field(160, ge=16, le=8192, description="Longest reply of focus, in tokens.")
    parallel: int = Field(8, ge=1, le=256, description="Requests that run at once.")
    context_tokens: int = Field(
        4096, ge=256, le=1_000_000, description="Longest prompt and reply together, in tokens."
    )
    min_focus_words: int = Field(
        5, ge=1, description="Shorter sentences (titles, list marks) are not asked about."
    )
    max_answer_words: int = Field(8, ge=1, le=64, description="Longest answer, in words.")
    prompt: PromptConfig = Field(
        default_factory=lambda: PromptConfig(), description="How teacher and student are asked."
    )

    @property
    def block(self) -> int:
        """Things asked for at a time: a block waits for its slowest reply, so it is long beside
        what runs at once."""
        keys = self.endpoint.limits if self.endpoint is not None else ()
        at_once = sum(one.concurrency or 1 for one in keys) or self.parallel
        return max(64, 16 * at_once)

    @model_validator(mode="before")
    @classmethod
    def asked_in_its_language(cls, values: Any) -> Any:
        """The student is asked in the rows' language, unless the recipe has words for it."""
        code = values.get("language") if isinstance(values, dict) else None
        prompt = values.get("prompt", {}) if code in languages.WORDS else None
        if isinstance(prompt, dict) and "student" not in prompt:
            words = languages.words(str(code), "answer")
            return {**values, "prompt": {**prompt, "student": words}}
        return values

    @model_validator(mode="after")
    def attempts_differ(self) -> GenerateConfig:
        """Greedy decoding answers the same every time, where nothing else is asked."""
        focus = any(isinstance(kind, FocusKind) for kind in self.kinds)
        if focus and self.temperature == 0 and self.attempts > 1:
            raise ValueError("with temperature 0 every attempt is the same; set attempts to 1")
        if focus and self.max_tokens >= self.context_tokens:
            raise ValueError("context_tokens must leave room for a prompt besides max_tokens")
        if reason := mismatch(self.teacher, self.endpoint, self.backend):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def kinds_differ(self) -> GenerateConfig:
        """Two of the same name could not be told apart in the rows."""
        labels = [
            one.prompt.label if isinstance(one, ChunkKind) else one.kind for one in self.kinds
        ]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"kinds has {twice[0]} twice; give one of them another prompt.name")
        for one in self.kinds:
            if isinstance(one, ChunkKind) and one.max_tokens >= self.context_tokens:
                raise ValueError(
                    f"context_tokens must leave room for a prompt besides the {one.max_tokens} "
                    f"tokens that a reply of {one.prompt.name} may have"
                )
        return self
