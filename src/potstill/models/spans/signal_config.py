"""What can be set about the teacher's distributions over spans. Light: no torch here.

In: the recipe's `distill.signal` section. Out: `SpanSignalConfig`. Knows nothing of how they are
made.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SpanSignalConfig(BaseModel):
    """Where the teacher's distribution over the spans of a passage comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["language_model", "span_model", "none"] = Field(
        "language_model",
        description="language_model: the recipe's teacher, corrected if it is: how probable it "
        "takes each span of the passage to be its answer. span_model: another model that marks "
        "answers, of any tokenizer. none: no distribution, so the rows alone teach, and there is "
        "no second student to compare with.",
    )
    model: str | None = Field(
        None, min_length=1, description="Model reference of the teacher, of span_model."
    )
    starts: int = Field(
        8,
        ge=1,
        le=256,
        description="Of language_model: places of the passage that are tried as an answer's "
        "beginning, the most probable ones; each with all its ends.",
    )
    longest_words: int = Field(
        10, ge=1, le=100, description="Of language_model: longest span that is tried, in words."
    )
    spans: int = Field(
        256, ge=1, le=4096, description="Of span_model: its likeliest spans that are kept."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SpanSignalConfig:
        if (self.model is not None) != (self.source == "span_model"):
            raise ValueError("model names the teacher of source: span_model, and of no other")
        own = {"starts": "language_model", "longest_words": "language_model", "spans": "span_model"}
        for name, source in own.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and self.source != source:
                raise ValueError(f"{name} has no effect without source: {source}")
        return self
