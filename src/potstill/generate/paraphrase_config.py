"""What a recipe may say about paraphrases: by whom, in which tone, in which words asked for.

In: fields. Out: a validated, immutable config. Knows no model.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.generate.filling import check
from potstill.inference.base import LocalBackend
from potstill.inference.endpoint import EndpointConfig, mismatch

TONES = {
    "formal": "formal and exact, as in a letter to an office",
    "casual": "casual, as one would ask a friend",
    "general": "plain, with other words and another order",
}


class ParaphrasePrompt(BaseModel):
    """How a teacher is asked to say a question in other words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("paraphrase", min_length=1, description="Name that rows are marked with.")
    version: int = Field(1, ge=1, description="Raise it when you change the words.")
    system: str = Field(
        "You say questions in other words. The new question asks for exactly the same thing, keeps "
        "every name and figure, stays in its language, and does not give the answer away. Answer "
        'with {"question": "..."} and nothing else.',
        description="System turn.",
    )
    ask: str = Field(
        "Question: {question}\nIts answer, which must not be given away: {answer}\n\n"
        "Write the question again. Tone: {tone}.",
        description="User turn. {question}, {answer} and {tone}.",
    )

    @model_validator(mode="after")
    def placeholders_fit(self) -> ParaphrasePrompt:
        """Without the question there is nothing to say in other words."""
        check("ask", self.ask, {"question"}, {"question", "answer", "tone"})
        return self

    @property
    def label(self) -> str:
        """Name and version, for provenance."""
        return f"{self.name}@{self.version}"


class ParaphraseConfig(BaseModel):
    """One paraphrase of each row's question: a teacher and a tone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tone: str = Field(
        "general",
        min_length=1,
        description="formal, casual, general, or a tone in your words; rows carry it as variant.",
    )
    teacher: str = Field(
        "", description="Model reference of who writes it; empty: generate's teacher and engine."
    )
    endpoint: EndpointConfig | None = Field(
        None, description="The address of a teacher openai:MODEL that is named here."
    )
    backend: LocalBackend = Field("auto", description="Engine of a teacher that is named here.")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the rows whose question is varied, drawn by lot; each is a request.",
    )
    temperature: float = Field(0.7, ge=0, le=2, description="Sampling temperature; 0 is greedy.")
    max_tokens: int = Field(200, ge=16, le=8192, description="Longest reply, in tokens.")
    prompt: ParaphrasePrompt = Field(ParaphrasePrompt(), description="How the teacher is asked.")

    @model_validator(mode="after")
    def teacher_fits(self) -> ParaphraseConfig:
        """An address without a model, or the other way round, would ask nobody."""
        if self.endpoint is not None and not self.teacher:
            raise ValueError("endpoint is given without a teacher: name it, as openai:MODEL")
        if reason := mismatch(self.teacher, self.endpoint, self.backend):
            raise ValueError(reason)
        return self

    @property
    def wanted(self) -> str:
        """The tone in words for the teacher."""
        return TONES.get(self.tone, self.tone)
