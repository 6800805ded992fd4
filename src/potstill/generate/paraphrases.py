"""The same question in other words: variants of rows, by a teacher and in a tone.

In: rows, a teacher, a tone. Out: variants that ask the same and have the same answer, and what was
rejected. Only the question changes; passage, choices, answer and span stay the parent's. A variant
must keep every figure and name, must not give the answer away, and must differ.
Knows no engine. Where variants may go (only into training) is curation's to keep.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pydantic import Field

from potstill.core.blanks import ANY_BLANK
from potstill.core.stage import Context
from potstill.errors import TeacherError
from potstill.generate import judging
from potstill.generate.asking import FIRST_BLOCK, GIVE_UP_AFTER, emit_rejected
from potstill.generate.config import GenerateConfig
from potstill.generate.filling import fill
from potstill.generate.grounding import share
from potstill.generate.jobs import AGAIN, LONGEST_TOLD, STAGE, Failed, request_seed
from potstill.generate.paraphrase_config import ParaphraseConfig
from potstill.generate.repair import Item, Shape, parse
from potstill.generate.unusable import UnusableError
from potstill.generate.words import normal, numbers, telling
from potstill.inference.base import Reply, Request
from potstill.inference.budget import Meter
from potstill.inference.replay import ReplayModel
from potstill.records import Example, Rejected, Turn, short_id

NOT_VARIED = ("summary", "conversation")  # their last question is no question by itself
QUESTION_MARKS = ("?", "\uff1f", "\u061f", "\u037e")
LENGTHS = (0.3, 3.0)  # of the original's, in signs
CAPITAL = re.compile(
    r"(?<=[^.!?:\s] )[A-Z\u00c0-\u00de][\w-]*|\b(?=\w*\d)(?=\w*[A-Za-z])\w+\b|\b[A-Z]{2,}\b"
)
POSSESSIVE = re.compile("['\u2019]s?\\b")
NOUNS_HAVE_CAPITALS = ("de",)
SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string", "minLength": 5, "maxLength": 600}},
    "required": ["question"],
    "additionalProperties": False,
}


class Paraphrase(Item):
    """A reply."""

    question: str = Field(min_length=3)


@dataclass
class Varied:
    """A row whose question is asked for in other words, and what came of it."""

    parent: Example
    variant: Example | None = None
    rejected: Rejected | None = None
    failed: Failed | None = None
    taken: set[str] = field(default_factory=set)


def can_vary(row: Example) -> bool:
    """Whether a row has a question of its own, which stands as it is in its last user turn."""
    return (
        row.kind not in NOT_VARIED
        and bool(row.question.strip())
        and row.provenance.parent is None
        and len(row.turns) >= 2
        and row.question in row.turns[-2].content
    )


def is_asked_for(row: Example, one: ParaphraseConfig, seed: int) -> bool:
    """Whether a row can vary and the lot chose it; of each row by itself, whatever others do."""
    if not can_vary(row):
        return False
    drawn = hashlib.sha256(f"{seed}/{row.id}/{one.tone}/{one.teacher}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") < one.share * 2**64


class Paraphrasing:
    """One teacher and tone, over all rows.

    before: work that the meter counted before this (things asked for, rows made), so that the pace
    is that of the whole stage.
    """

    def __init__(
        self,
        config: GenerateConfig,
        one: ParaphraseConfig,
        teacher: ReplayModel,
        context: Context,
        total: int,
        meter: Meter,
        before: tuple[float, int] = (0.0, 0),
    ) -> None:
        self.config, self.one, self.teacher, self.context = config, one, teacher, context
        self.meter, self.before = meter, before
        self.total, self.done, self.made, self.requests, self._block = total, 0, 0, 0, 0
        self.rejected: list[Rejected] = []
        self.judgements: list[judging.Judgement] = []
        self.name = one.teacher or config.teacher

    def variants(self, rows: Iterator[Example], taken: dict[str, set[str]]) -> Iterator[Example]:
        """Variants in the order of the rows. taken: row id -> its variants so far, added to."""
        while block := list(islice(rows, self.config.block if self.done else FIRST_BLOCK)):
            self._block = len(block)
            wanted = [Varied(row, taken=taken.setdefault(row.id, set())) for row in block]
            for attempt in range(self.config.attempts):
                if missing := [one for one in wanted if one.variant is None]:
                    self._ask(missing, attempt)
                if self.made == 0 and self.requests >= GIVE_UP_AFTER and not _any(wanted):
                    raise self._useless(wanted)
            if self.config.judge == "teacher":
                self._judge([one for one in wanted if one.variant is not None])
            self.done += len(wanted)
            for one in wanted:
                if one.variant is not None:
                    one.taken.add(normal(one.variant.question))
                    self.made += 1
                    yield one.variant
                elif one.rejected is not None:
                    self.rejected.append(one.rejected)
                    emit_rejected(self.context, one.rejected)
            self._progress(self.done)

    def _useless(self, wanted: list[Varied]) -> TeacherError:
        reasons = Counter(one.rejected.reason for one in wanted if one.rejected is not None)
        counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))
        return TeacherError(
            f"The teacher {self.name} gave no usable paraphrase ({self.one.tone}) in "
            f"{self.requests} requests ({counted}).",
            "Name another teacher in generate.paraphrases, or change its prompt.",
        )

    def _progress(self, done: float) -> None:
        asked, made = self.before
        self.context.events.progress(
            round(done),
            self.total,
            "rows",
            step=f"paraphrases, {self.one.tone}",
            **self.meter.figures(made + self.made, asked + done, asked + self.total),
        )

    def _ask(self, wanted: list[Varied], attempt: int) -> None:
        requests = [self._request(one, attempt) for one in wanted]
        for one, reply in zip(wanted, self._replies(requests), strict=True):
            try:
                question = self._read(one, reply)
                self._check(one, question)
            except UnusableError as failure:
                one.failed = Failed(reply, failure)
                one.rejected = self._reject(one.parent, failure, reply)
            else:
                one.variant = self._variant(one.parent, question)

    def _replies(self, requests: list[Request]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        self.requests += len(requests)
        for position, reply in self.teacher.complete(requests):
            replies[position] = reply
            self._progress(self.done + len(replies) / len(requests) * self._block)
        return [replies[position] for position in range(len(requests))]

    def _request(self, one: Varied, attempt: int) -> Request:
        prompt, parent = self.one.prompt, one.parent
        answer = parent.answers[0] if parent.answers else ""
        asked = fill(prompt.ask, question=parent.question, answer=answer, tone=self.one.wanted)
        turns = [Turn(role="system", content=prompt.system)] if prompt.system else []
        turns.append(Turn(role="user", content=asked))
        if one.failed is not None and one.failed.reply.finish_reason != "error":
            failure = one.failed.failure
            problem = f"{failure.reason.replace('_', ' ')} ({failure.detail[:200]})"
            said = one.failed.reply.text[:LONGEST_TOLD] or "{}"
            turns.append(Turn(role="assistant", content=said))
            turns.append(Turn(role="user", content=AGAIN.format(problem=problem)))
        return Request(
            messages=tuple(turns),
            max_tokens=self.one.max_tokens,
            temperature=self.one.temperature,
            top_p=self.config.top_p,
            seed=request_seed(self.context.seed, f"{parent.id}/{self.one.tone}", 0, attempt),
            schema=SCHEMA,
        )

    def _read(self, one: Varied, reply: Reply) -> str:
        if reply.finish_reason == "error":
            raise UnusableError("refused", reply.text)
        parsed = parse(reply.text, Shape(Paraphrase), reply.finish_reason == "length")
        return " ".join(parsed.items[-1].question.split())

    def _check(self, one: Varied, question: str) -> None:
        """Errors: UnusableError says how the meaning, or nothing, changed."""
        if normal(question) in one.taken:
            raise UnusableError("same_words", question)
        check_meaning(one.parent, question, self.config.language)

    def _judge(self, wanted: list[Varied]) -> None:
        prompt = self.config.judge_prompt
        varied = [(one, one.variant) for one in wanted if one.variant is not None]
        requests = [
            judging.about_paraphrase(prompt, one.parent, variant.question)
            for one, variant in varied
        ]
        for (one, variant), reply in zip(varied, self._replies(requests), strict=True):
            try:
                same, reason = judging.read(reply)
                self.judgements.append(
                    judging.Judgement(
                        id=variant.id,
                        about="paraphrase",
                        supported=same,
                        reason=reason,
                        judge=self.name,
                        prompt=prompt.label,
                    )
                )
                if not same:
                    raise UnusableError("judged_other_question", reason)
            except UnusableError as failure:
                one.variant, one.rejected = None, self._reject(one.parent, failure, reply)

    def _variant(self, parent: Example, question: str) -> Example:
        asked = parent.turns[-2]
        before, _, after = asked.content.rpartition(parent.question)
        turn = asked.model_copy(update={"content": f"{before}{question}{after}"})
        provenance = parent.provenance.model_copy(
            update={
                "teacher": self.name,
                "prompt": self.one.prompt.label,
                "parent": parent.id,
                "variant": self.one.tone,
            }
        )
        return parent.model_copy(
            update={
                "id": short_id(parent.id, self.one.tone, self.name, question),
                "turns": (*parent.turns[:-2], turn, parent.turns[-1]),
                "question": question,
                "provenance": provenance,
            }
        )

    def _reject(self, parent: Example, failure: UnusableError, reply: Reply) -> Rejected:
        return Rejected(
            id=short_id(parent.id, self.one.tone, self.name),
            stage=STAGE,
            reason=failure.reason,
            detail=failure.detail,
            row={
                "parent": parent.id,
                "question": parent.question,
                "variant": self.one.tone,
                "teacher": self.name,
                "reply": reply.text,
            },
        )


def _any(wanted: list[Varied]) -> bool:
    return any(one.variant is not None for one in wanted)


def check_meaning(parent: Example, question: str, language: str = "") -> None:
    """Whether a question in other words still asks the same, as far as words tell.

    Errors: UnusableError `same_words`, `not_a_question`, `changed_blank`, `changed_number`,
    `changed_name`, `changed_options`, `answer_leaked`, `changed_length`, `other_topic`.
    """
    old = parent.question
    if normal(question) == normal(old):
        raise UnusableError("same_words", question)
    if old.rstrip().endswith(QUESTION_MARKS) and not question.endswith(QUESTION_MARKS):
        raise UnusableError("not_a_question", question)
    if len(ANY_BLANK.findall(old)) != len(ANY_BLANK.findall(question)):
        raise UnusableError("changed_blank", question)
    if numbers(old) != numbers(question):
        raise UnusableError("changed_number", f"{old} / {question}")
    kept = set(normal(POSSESSIVE.sub(" ", question)).split())
    if lost := sorted(_names(old, language) - kept):
        raise UnusableError("changed_name", f"{', '.join(lost)} is not in: {question}")
    inline = [one for one in parent.options if normal(one) in normal(old)]
    if any(normal(one) not in normal(question) for one in inline):
        raise UnusableError("changed_options", question)
    for answer in parent.answers:
        said, was = f" {normal(question)} ", f" {normal(old)} "
        if normal(answer) and f" {normal(answer)} " in said and f" {normal(answer)} " not in was:
            raise UnusableError("answer_leaked", f"{question} / {answer}")
    if not LENGTHS[0] <= len(question) / len(old) <= LENGTHS[1]:
        raise UnusableError("changed_length", question)
    if (about := telling(old)) and share(about, telling(question)) == 0:
        raise UnusableError("other_topic", f"{old} / {question}")


def _names(question: str, language: str) -> set[str]:
    """Words that a paraphrase may not lose: those with a capital inside a sentence, and codes."""
    found = [word for word in CAPITAL.findall(question) if word.strip("_")]
    if language in NOUNS_HAVE_CAPITALS:
        found = [word for word in found if word.isupper() or any(sign.isdigit() for sign in word)]
    return {part for word in found for part in normal(word).split()}
