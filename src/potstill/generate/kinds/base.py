"""What all kinds that read a whole chunk share: the prompt, the request, the reading of a reply.

In: chunks. Out: `Request`s for the teacher; of its reply the Examples, and what is wrong with the
rest of it. A kind says only what one row looks like (`properties`) and when it is good
(`row`). Knows no engine and no file.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from potstill.generate import languages
from potstill.generate.filling import check, fill
from potstill.generate.grounding import Found, support
from potstill.generate.kinds.template import ChunkShot, Template
from potstill.generate.repair import Item, problem_of
from potstill.generate.unusable import UnusableError
from potstill.generate.words import normal
from potstill.records import Chunk, Example, Provenance, Span, Turn, short_id


def text(least: int, most: int | None) -> dict[str, Any]:
    """JSON Schema of a text of `least` to `most` characters; None: any number."""
    schema = {"type": "string", "minLength": least}
    return schema if most is None else {**schema, "maxLength": most}


@dataclass(frozen=True)
class Setting:
    """What the rows of all kinds have in common."""

    teacher: str
    student: str
    """How the student is asked a question about a passage."""
    language: str = ""
    least_support: float = 0.6

    def words(self, use: str) -> str:
        """How the student is asked, in the language of the rows."""
        return self.student if use == "answer" else languages.words(self.language, use)


@dataclass(frozen=True)
class Source:
    """The chunks that one request is about, neighbours of one document."""

    chunks: tuple[Chunk, ...]

    @property
    def id(self) -> str:
        """Stable name of this choice of chunks."""
        return short_id(*(chunk.id for chunk in self.chunks))

    @property
    def text(self) -> str:
        """Their text, what overlaps once."""
        parts = [self.chunks[0].text]
        for before, chunk in zip(self.chunks, self.chunks[1:], strict=False):
            parts.append(chunk.text[max(0, before.end - chunk.start) :].lstrip())
        return "\n\n".join(part for part in parts if part)

    def ground(self, question: str, answer: str, evidence: str, least: float) -> Grounded:
        """The chunk and span an answer rests on. Errors: UnusableError of the likeliest chunk."""
        problem: UnusableError | None = None
        for chunk in self.chunks:
            try:
                return Grounded(chunk, support(chunk.text, question, answer, evidence, least))
            except UnusableError as failure:
                if problem is None or problem.reason == "evidence_not_in_passage":
                    problem = failure
        assert problem is not None
        raise problem


@dataclass(frozen=True)
class Grounded:
    """Where an answer stands."""

    chunk: Chunk
    found: Found


class ChunkKind(BaseModel):
    """A kind of row that is made from whole chunks. Subclasses name their fields and words."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    LIST: ClassVar[str]
    """Name of the list in the reply; empty: the reply is one row."""
    ITEM: ClassVar[type[Item]]
    PROPERTIES: ClassVar[dict[str, Any]] = {}
    ROW_TOKENS: ClassVar[int] = 60
    """Tokens of one row of a reply, about; for `plan`."""

    kind: str
    max_tokens: int = Field(1536, ge=16, le=32768, description="Longest reply, in tokens.")
    prompt: Template

    @model_validator(mode="after")
    def prompt_fits(self) -> Self:
        """A number that nobody fills in, or an example of another form, misleads the teacher."""
        numbers = set(self.numbers)
        check("prompt.system", self.prompt.system, set(), {"language", *numbers})
        check("prompt.ask", self.prompt.ask, {"passage"}, {"passage", *numbers})
        for shot in self.prompt.shots:
            rows = shot.reply.get(self.LIST) if self.LIST else [shot.reply]
            if not isinstance(rows, list) or not rows:
                raise ValueError(f'prompt.shots: a reply must be {{"{self.LIST}": [...]}}')
            for row in rows:
                try:
                    self.ITEM.model_validate(row)
                except ValidationError as error:
                    raise ValueError(f"prompt.shots: {problem_of(error)}") from None
        return self

    @property
    def most(self) -> int:
        """Rows of one reply, at most."""
        return 1

    @property
    def rows_a_request(self) -> float:
        """Rows of one reply, about; for `plan`."""
        return float(self.most)

    @property
    def chunks_a_request(self) -> int:
        """Chunks that one request reads."""
        return 1

    @property
    def numbers(self) -> dict[str, str]:
        """What `ask` may name besides {passage}."""
        return {"count": str(self.most)}

    def numbers_of(self, shot: ChunkShot) -> dict[str, str]:
        """The same numbers, as a worked example has them."""
        rows = shot.reply.get(self.LIST, ())
        return {name: str(len(rows)) for name in self.numbers if name in ("count", "turns")}

    @property
    def properties(self) -> dict[str, Any]:
        """JSON Schemas of a row's fields, in the order in which the teacher writes them."""
        return self.PROPERTIES

    def reply_schema(self) -> dict[str, Any]:
        """JSON Schema of a reply, for engines that can force it."""
        row = {
            "type": "object",
            "properties": self.properties,
            "required": list(self.properties),
            "additionalProperties": False,
        }
        if not self.LIST:
            return row
        rows = {"type": "array", "items": row, "minItems": 1, "maxItems": self.most}
        return {
            "type": "object",
            "properties": {self.LIST: rows},
            "required": [self.LIST],
            "additionalProperties": False,
        }

    def conversation(self, source: Source, setting: Setting) -> tuple[Turn, ...]:
        """The conversation whose next turn is the reply."""
        template, values = self.prompt, self.numbers
        system = fill(template.system, language=languages.name(setting.language), **values)
        turns = [Turn(role="system", content=system)] if system else []
        for shot in template.shots:
            asked = fill(template.ask, passage=shot.passage, **values | self.numbers_of(shot))
            reply = json.dumps(shot.reply, ensure_ascii=False)
            turns += [Turn(role="user", content=asked), Turn(role="assistant", content=reply)]
        asked = fill(template.ask, passage=source.text, **values)
        return (*turns, Turn(role="user", content=asked))

    def sources(self, chunks: Iterable[Chunk]) -> Iterator[Source]:
        """What is asked about, in the order of the chunks."""
        return (Source((chunk,)) for chunk in chunks)

    @abstractmethod
    def rows(self, items: tuple[Any, ...], source: Source, setting: Setting) -> list[Outcome]:
        """What the parts of a reply come to: rows, and reasons why the rest is none."""

    def check_question(self, question: str, answer: str, ends: bool = True) -> None:
        """What no question may be. Errors: UnusableError."""
        if ends and not question.rstrip().endswith(("?", "\uff1f", "\u061f", "\u037e")):
            raise UnusableError("not_a_question", question)
        if not normal(answer):
            raise UnusableError("empty_answer", question)
        if f" {normal(answer)} " in f" {normal(question)} ":
            raise UnusableError("question_contains_answer", f"{question} / {answer}")
        for shot in self.prompt.shots:
            if normal(question) in {normal(one) for one in texts_in(shot.reply)}:
                raise UnusableError("copied_example", question)

    def example(
        self,
        source: Source,
        setting: Setting,
        *,
        question: str,
        answer: str,
        use: str,
        grounded: Grounded | None,
        reasoning: str = "",
        options: tuple[str, ...] = (),
        earlier: tuple[Turn, ...] = (),
    ) -> Example:
        """A row of this kind; `use`: the words the student is asked in; `earlier`: turns before
        the last question, of which the first then shows the passage."""
        template = self.prompt.student or setting.words(use)
        lettered = "\n".join(
            f"{letter}. {one}" for letter, one in zip(LETTERS, options, strict=False)
        )
        asked = question
        if not earlier:
            asked = fill(template, passage=source.text, question=question, options=lettered)
        chunk = grounded.chunk if grounded else source.chunks[0]
        return Example(
            id=short_id(source.id, self.prompt.label, question, answer),
            kind=self.kind,
            turns=(
                *earlier,
                Turn(role="user", content=asked),
                Turn(role="assistant", content=answer),
            ),
            question=question,
            reasoning=reasoning,
            answers=(answer,),
            options=options,
            provenance=Provenance(
                document=chunk.document,
                chunk=chunk.id,
                also=tuple(one.id for one in source.chunks if one.id != chunk.id),
                span=grounded.found.span if grounded else None,
                teacher=setting.teacher,
                prompt=self.prompt.label,
            ),
        )


class RowKind(ChunkKind):
    """A kind whose replies are made of rows: each part of one is a row of its own."""

    @abstractmethod
    def row(self, item: Any, source: Source, setting: Setting) -> Example:
        """The row that a part of a reply makes. Errors: UnusableError says why it makes none."""

    def rows(self, items: tuple[Any, ...], source: Source, setting: Setting) -> list[Outcome]:
        """A row or a reason for each part of a reply."""
        outcomes: list[Outcome] = []
        for item in items:
            try:
                outcomes.append(Outcome(self.row(item, source, setting)))
            except UnusableError as failure:
                outcomes.append(Outcome(None, failure, item.model_dump_json()))
        return outcomes


class ListKind(RowKind):
    """A kind of which one reply has several rows."""

    per_chunk: int

    @property
    def most(self) -> int:
        """Rows of one reply, at most."""
        return self.per_chunk


LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Outcome:
    """A row, or why there is none and what the teacher wrote instead."""

    example: Example | None
    failure: UnusableError | None = None
    written: str = ""


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def whole(chunk: Chunk) -> Span:
    """All of a chunk, as a span."""
    return Span(start=0, end=len(chunk.text))
