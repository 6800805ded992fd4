"""The kinds of rows a teacher can be asked for, one file each. Light: a recipe is made of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.generate.kinds.base import ChunkKind
from potstill.generate.kinds.conversation import ConversationKind
from potstill.generate.kinds.extractive import ExtractiveKind
from potstill.generate.kinds.fill_in_the_blank import FillInTheBlankKind
from potstill.generate.kinds.focus import FocusKind
from potstill.generate.kinds.multiple_choice import MultipleChoiceKind
from potstill.generate.kinds.qa import QaKind
from potstill.generate.kinds.refusal import RefusalKind
from potstill.generate.kinds.summary import SummaryKind

__all__ = ["AnyKind", "ChunkKind", "FocusKind"]

AnyKind = Annotated[
    FocusKind
    | QaKind
    | ExtractiveKind
    | ConversationKind
    | MultipleChoiceKind
    | FillInTheBlankKind
    | SummaryKind
    | RefusalKind,
    Field(discriminator="kind"),
]
