"""Several teachers, as a recipe names them. Light: no torch here.

In: entries of `distill.teachers`. Out: `TeacherConfig`, and which documents each one is for. Knows
nothing of models; how several are mixed is `panel.py`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field, field_validator

from potstill.errors import TrainingError


def different_teachers(first: str, other: str) -> TrainingError:
    """The error for teachers whose distributions cannot be mixed."""
    return TrainingError(
        f"The teachers {first} and {other} have different vocabularies, so their distributions "
        "cannot be mixed.",
        "Use teachers of one family in distill.teachers.",
    )


class TeacherConfig(BaseModel):
    """One of several teachers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str = Field("", description="Model reference; empty: the section's own `teacher`.")
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Its say, against that of the other teachers of the same row.",
    )
    documents: str | tuple[str, ...] | None = Field(
        None,
        description="Pattern, or patterns, of the documents that it teaches, such as manuals/*.pdf "
        "(paths as the recipe's sources name them; * crosses folders); unset: all of them.",
    )

    @field_validator("documents")
    @classmethod
    def _names_some(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if given in ("", ()):
            raise ValueError("give at least one pattern, or leave documents out")
        return given

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of its documents; empty if it teaches all."""
        found = self.documents or ()
        return (found,) if isinstance(found, str) else found

    def teaches(self, document: str) -> bool:
        """Whether rows of that document are taught by it."""
        return self.documents is None or any(fnmatchcase(document, one) for one in self.patterns)
