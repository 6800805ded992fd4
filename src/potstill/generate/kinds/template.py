"""The prompt of a kind: the words of it, which a recipe can replace, and worked examples.

In: fields. Out: a validated `Template`. Knows no kind.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.generate.filling import check

SYSTEM_RULES = (
    "Use only what the passage says; never use other knowledge. Each question must make sense to "
    'somebody who does not see the passage: name what it is about, and do not write "the passage", '
    '"the text" or "the author". Write in {language}. Answer with one JSON object and nothing else.'
)
SHOT_PASSAGE = (
    "The ferry Blue Marlin leaves Port Sena at 7:15 every weekday. It carries 48 passengers and 4 "
    "cars. In winter the last crossing is at 16:40, because the channel has no lights."
)


class ChunkShot(BaseModel):
    """A worked example: a passage, and the reply that was wanted for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passage: str = Field(min_length=1, description="A short passage.")
    reply: dict[str, Any] = Field(description="The reply as JSON, of the kind's own form.")


class Template(BaseModel):
    """How the teacher is asked for one kind of row. Replace any part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name that rows are marked with.")
    version: int = Field(1, ge=1, description="Raise it when you change the words.")
    system: str = Field(description="System turn. {language} is the language to write in.")
    ask: str = Field(description="User turn. {passage} and the kind's numbers.")
    shots: tuple[ChunkShot, ...] = Field((), description="Worked examples, as turns before it.")
    student: str = Field(
        "",
        description="What the student will be asked: {passage}, {question}, and {options} of a "
        "choice. Empty: the words for it in generate.language.",
    )

    @model_validator(mode="after")
    def holds_the_passage(self) -> Template:
        """Without it every prompt would be the same."""
        if "{passage}" not in self.ask:  # what else it may name, its kind says
            raise ValueError("ask must contain {passage}")
        if self.student:
            check("student", self.student, {"question"}, {"passage", "question", "options"})
        return self

    @property
    def label(self) -> str:
        """Name and version, and a digest of the words where they are not this program's own."""
        own = type(self).model_fields
        changed = [n for n in ("system", "ask", "shots") if getattr(self, n) != own[n].default]
        same_name = (self.name, self.version) == (own["name"].default, own["version"].default)
        if not (changed and same_name):
            return f"{self.name}@{self.version}"
        words = json.dumps([str(getattr(self, name)) for name in changed])
        return f"{self.name}@{self.version}+{hashlib.sha256(words.encode()).hexdigest()[:6]}"


def worked(**reply: Any) -> Any:
    """The field of a template with this reply about `SHOT_PASSAGE` as its worked example."""
    shot = ChunkShot(passage=SHOT_PASSAGE, reply=reply)
    return Field((shot,), description="Worked examples, as turns before it.")
