"""What a recipe may say about ready-made rows: which columns hold what, and how rows are worded.

In: fields. Out: a validated, immutable config. Knows no file and no library.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PLACEHOLDER = re.compile(r"\{(\w+)\}")
# As generation words its rows (generate/wording.py), so that a student is asked in one way only.
WITH_PASSAGE = (
    "Read the passage, then answer the question in a few words.\n\n"
    "Passage: {passage}\n\nQuestion: {question}"
)


class ColumnsConfig(BaseModel):
    """Names of the columns (or JSON keys). Empty: found by the usual names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field("", description="The question. Usual: question, query, prompt, ...")
    answer: str = Field(
        "", description="The answer: text, a list of texts, or a letter that names an option."
    )
    context: str = Field("", description="The passage that the question is about, if there is one.")
    options: str | tuple[str, ...] = Field(
        "", description="The choices: one column that holds them all, or one column for each."
    )
    reasoning: str = Field("", description="Why the answer is right.")
    label: str = Field("", description="The row's class; splits keep the shares of the classes.")
    document: str = Field(
        "", description="What the row comes from; splits keep the rows of one document together."
    )
    id: str = Field("", description="The row's own name; must differ from row to row.")
    messages: str = Field("", description="A conversation: a list of role and content.")


class RowsPromptConfig(BaseModel):
    """The user turn of a row: what the student will be asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passage: str = Field(WITH_PASSAGE, description="With a passage. {passage} and {question}.")
    question: str = Field("{question}", description="Without a passage. {question}.")
    choices: str = Field(
        "{question}\n\n{options}",
        description="What stands for the question where there are options. {question}, {options}.",
    )

    @model_validator(mode="after")
    def placeholders_fit(self) -> RowsPromptConfig:
        """A missing placeholder would make every row ask the same."""
        for field, needed in (
            ("passage", {"passage", "question"}),
            ("question", {"question"}),
            ("choices", {"question", "options"}),
        ):
            found = set(PLACEHOLDER.findall(getattr(self, field)))
            if missing := sorted(needed - found):
                raise ValueError(f"{field} must contain {{{missing[0]}}}")
            if unknown := sorted(found - needed):
                raise ValueError(f"{field} contains {{{unknown[0]}}}, which is not known there")
        return self


class RowsConfig(BaseModel):
    """How ready-made rows are read from CSV, TSV, JSON, JSON Lines, Parquet and SQuAD files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: ColumnsConfig = Field(
        default_factory=lambda: ColumnsConfig(), description="Which column holds what."
    )
    prompt: RowsPromptConfig = Field(
        default_factory=lambda: RowsPromptConfig(), description="How the student is asked."
    )
    refusal: str = Field(
        "The passage does not say.",
        min_length=1,
        description="The answer to a question that the data marks as having none (SQuAD 2.0).",
    )
    first_option: Literal[0, 1] | None = Field(
        None,
        description="What number the first option has, where answers are the numbers of options. "
        "Without it such a row is set aside: files differ, and a guess would teach wrong answers.",
    )
