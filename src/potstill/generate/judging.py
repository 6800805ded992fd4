"""The teacher as judge: does the passage support this answer? Do these two ask the same?

In: rows. Out: requests whose reply is a reason and a yes or no, and what that reply says.
Asked greedily, after the cheaper checks. Knows no engine.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.generate.filling import check, fill
from potstill.generate.repair import Item, Shape, parse
from potstill.generate.unusable import UnusableError
from potstill.inference.base import Reply, Request
from potstill.records import Example, Record, Turn

MAX_TOKENS = 200
YES = frozenset(("yes", "true", "supported", "1"))
NO = frozenset(("no", "false", "unsupported", "not supported", "0"))
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "minLength": 1, "maxLength": 300},
        "supported": {"type": "string", "enum": ["yes", "no"]},
    },
    "required": ["reason", "supported"],
    "additionalProperties": False,
}


class JudgePrompt(BaseModel):
    """How the teacher is asked to judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("judge", min_length=1, description="Name that judgements are marked with.")
    version: int = Field(1, ge=1, description="Raise it when you change the words.")
    system: str = Field(
        "You check the work of others. Give the reason in one sentence, then yes or no, as "
        '{"reason": "...", "supported": "yes"}. In doubt say no.',
        description="System turn.",
    )
    answer: str = Field(
        "Passage: {passage}\n\nQuestion: {question}\nAnswer: {answer}\n\n"
        "Does the passage say that this is the answer to the question?",
        description="Of an answer: {passage}, {question}, {answer}.",
    )
    refusal: str = Field(
        "Passage: {passage}\n\nQuestion: {question}\n\n"
        "Is it true that the passage does not answer this question?",
        description="Of a question that the passage should not answer: {passage}, {question}.",
    )
    paraphrase: str = Field(
        "First question: {question}\nSecond question: {paraphrase}\n"
        "Answer to the first: {answer}\n\n"
        "Does the second question ask for the same thing, so that it has the same answer?",
        description="Of a paraphrase: {question}, {paraphrase}, {answer}.",
    )

    @model_validator(mode="after")
    def holds_what_is_judged(self) -> JudgePrompt:
        """A judge who does not see the case says anything."""
        names = {"passage", "question", "answer"}
        check("answer", self.answer, names, names)
        check("refusal", self.refusal, {"passage", "question"}, {"passage", "question"})
        names = {"question", "paraphrase"}
        check("paraphrase", self.paraphrase, names, {*names, "answer"})
        return self

    @property
    def label(self) -> str:
        """Name and version, for the judgement."""
        return f"{self.name}@{self.version}"


class Verdict(Item):
    """A judge's reply."""

    reason: str = ""
    supported: str


class Judgement(Record):
    """What the judge said about a row; kept for rows that stay too."""

    id: str = Field(description="Id of the row.")
    about: Literal["answer", "paraphrase"] = "answer"
    supported: bool
    reason: str
    judge: str
    prompt: str


def about_row(prompt: JudgePrompt, example: Example, passage: str) -> Request:
    """Asks whether the passage supports a row; of a conversation, all its answers together."""
    question, answer = example.question, example.answers[0]
    if len(example.turns) > 2:
        said = [one.content for one in example.turns[1:]]
        answer = "\n".join(f"- {one}" for one in [*said[:-2], question, answer])
    words = prompt.refusal if example.kind == "refusal" else prompt.answer
    return _request(prompt, fill(words, passage=passage, question=question, answer=answer))


def about_paraphrase(prompt: JudgePrompt, parent: Example, paraphrase: str) -> Request:
    """Asks whether two questions are one."""
    answer = parent.answers[0] if parent.answers else ""
    values = {"question": parent.question, "paraphrase": paraphrase, "answer": answer}
    return _request(prompt, fill(prompt.paraphrase, **values))


def _request(prompt: JudgePrompt, asked: str) -> Request:
    system = [Turn(role="system", content=prompt.system)] if prompt.system else []
    turns = (*system, Turn(role="user", content=asked))
    return Request(messages=turns, max_tokens=MAX_TOKENS, temperature=0.0, schema=SCHEMA)


def read(reply: Reply) -> tuple[bool, str]:
    """What the judge said, and why. Errors: UnusableError if that cannot be made out."""
    if reply.finish_reason == "error":
        raise UnusableError("judge_refused", reply.text)
    try:
        parsed = parse(reply.text, Shape(Verdict), reply.finish_reason == "length")
    except UnusableError as failure:
        raise UnusableError("judge_unclear", reply.text or failure.detail) from failure
    verdict = parsed.items[-1]
    word = verdict.supported.strip(" .!").casefold()
    if word not in YES | NO:
        raise UnusableError("judge_unclear", reply.text)
    return word in YES, verdict.reason
