"""What can be set about curation.

In: the recipe's `curate` section. Out: `CurateConfig`. Knows nothing of how rows are judged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from potstill.core.stage import StageConfig


class CurateConfig(StageConfig):
    """Rows -> kept or rejected, and split."""

    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the rows that early stopping looks at."
    )
    test_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the rows that only the evaluation sees."
    )
    split_by: Literal["auto", "document", "chunk"] = Field(
        "auto",
        description="Unit that never crosses from one split to another. auto: the document where "
        "there are ten or more, else the chunk.",
    )
    shortest_question_words: int = Field(3, ge=1, description="Shorter questions are rejected.")
    longest_question_words: int = Field(60, ge=1, description="Longer questions are rejected.")
    longest_answer_words: int = Field(120, ge=1, description="Longer answers are rejected.")
    support: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Least share of an answer's words that must stand in its chunk.",
    )
    near_duplicate: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Rows whose word shingles have at least this Jaccard similarity are "
        "duplicates; 1 only finds equal ones.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> CurateConfig:
        if self.validation_fraction + self.test_fraction > 0.8:
            raise ValueError("validation_fraction and test_fraction leave too little for training")
        if self.shortest_question_words > self.longest_question_words:
            raise ValueError("shortest_question_words is larger than longest_question_words")
        return self
