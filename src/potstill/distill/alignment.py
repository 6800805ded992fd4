"""How a teacher with another tokenizer teaches. Light: no torch here.

In: the recipe's `distill.alignment`. Out: `AlignmentConfig`, and what is said without it. Knows
nothing of tokenizers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.errors import TrainingError


def different_vocabularies() -> TrainingError:
    """The error for two tokenizers that differ where nothing says how to align them."""
    return TrainingError(
        "Teacher and student have different vocabularies, so their distributions cannot be "
        "compared word by word.",
        "Set distill.alignment.method (spans, words, spans+words or uld) to compare them by "
        "the text they stand for, or use a student that is cut from the teacher.",
    )


class AlignmentConfig(BaseModel):
    """How a teacher with another tokenizer is imitated. With `none` both must have the same one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["none", "spans", "words", "spans+words", "uld"] = Field(
        "none",
        description="What is compared where the tokenizers differ. spans: the likelihood of each "
        "piece of text between common token boundaries. words: at common boundaries, the "
        "distribution over the next word, of words that both vocabularies have. spans+words: the "
        "sum of both. uld: at common boundaries, the sorted probabilities. none: nothing; "
        "tokenizers that differ are refused.",
    )
    temperature: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="tau of spans: the likelihoods' exponent is 1 / tau. Above 1, unlikely spans "
        "count more.",
    )
    words: int = Field(
        64, ge=1, le=1024, description="Words of a distribution that are told apart by `words`."
    )
    least_share: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Share of a row's bytes that must be aligned; other rows are rejected.",
    )

    @model_validator(mode="after")
    def _no_field_without_effect(self) -> AlignmentConfig:
        for name, used in (("temperature", self.spans_used), ("words", self.words_used)):
            if not used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"alignment.{name} has no effect with method: {self.method}")
        return self

    @property
    def spans_used(self) -> bool:
        """Whether likelihoods of spans are compared."""
        return "spans" in self.method

    @property
    def words_used(self) -> bool:
        """Whether distributions over common words are compared."""
        return "words" in self.method

    @property
    def used(self) -> bool:
        """Whether the teacher reads the rows in tokens of its own."""
        return self.method != "none"
