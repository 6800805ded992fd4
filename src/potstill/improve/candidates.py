"""Accepted feedback becomes rows that a student can learn from.

In: rows of the feedback database, how the student is asked. Out: `Candidate`s, each with the
passage that its question was answered from, and what could not be used with its reason. Knows no
database, no run and no model.

A candidate is worded as it was served, which is as the student was taught; its answer is the
reviewer's, else the user's correction, else (after a thumb up) the answer itself. Of several rows
about one question the one that was reviewed last counts. Which part a candidate plays is drawn by
the hash of the seed and its question, so it plays the same part in every later improvement.

    not_accepted         new, or rejected by the reviewer
    no_right_answer      nobody said what it is
    no_question          the conversation does not end with a question
    plain_completion     a text that went on, not a question
    answered_again       the same question was reviewed later, with another row
    not_in_passage       of a student that marks answers: the passage does not hold the answer
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from potstill.core.scoring import normalize_answer
from potstill.curate.edits import place_of
from potstill.curate.personal import masked
from potstill.curate.prepared import FEEDBACK, question_key
from potstill.curate.split import Split
from potstill.inference.sizes import text_tokens
from potstill.records import Chunk, Example, Provenance, Turn, short_id
from potstill.serve.review import right_answer

Ask = Callable[[str, str], str]
"""(passage, question) -> the user turn as the student was taught it."""
ROLES = ("system", "user", "assistant")
PLACEHOLDER = "\x00question\x00"


@dataclass(frozen=True)
class Candidate:
    """A row from feedback. passage: what it is asked about, if anything."""

    feedback: str
    example: Example
    passage: Chunk | None = None

    @property
    def question(self) -> str:
        """The same text for rows that ask the same of the same passage."""
        return json.dumps(question_key(self.example), ensure_ascii=False)

    def part(self, seed: int, held_out: float, validation: float) -> Split:
        """Which split it belongs to: test for that share of all questions, and so on."""
        digest = hashlib.sha256(f"{seed}:feedback:{self.question}".encode()).digest()
        lot = int.from_bytes(digest[:8], "big") / 2**64
        if lot < held_out:
            return "test"
        return "validation" if lot < held_out + validation else "train"


@dataclass(frozen=True)
class Gathered:
    """What came of the feedback: candidates in the order of their ids, and reasons by number."""

    candidates: tuple[Candidate, ...]
    left: Mapping[str, int]


def gather(
    rows: Iterable[Mapping[str, Any]],
    ask: Ask,
    *,
    refusal: str = "",
    spans: bool = False,
    mask: bool = False,
) -> Gathered:
    """The candidates among feedback rows (`serve.feedback.read_feedback`).

    ask: how the student is asked. refusal: the words with which the run's rows decline. spans:
    the student marks answers. mask: put [EMAIL] and the like in the place of personal data.
    """
    left: Counter[str] = Counter()
    found: dict[str, tuple[str, Candidate]] = {}
    for row in rows:
        made = _candidate(row, ask, refusal, spans, mask)
        if isinstance(made, str):
            left[made] += 1
            continue
        when = str(row["reviewed"] or row["time"])
        before = found.get(made.question)
        if before is not None:
            left["answered_again"] += 1
        if before is None or before[0] <= when:
            found[made.question] = (when, made)
    kept = sorted((one for _, one in found.values()), key=lambda one: one.example.id)
    return Gathered(tuple(kept), dict(left))


def _candidate(
    row: Mapping[str, Any], ask: Ask, refusal: str, spans: bool, mask: bool
) -> Candidate | str:
    if row["state"] != "accepted":
        return "not_accepted"
    if str(row["response"]).startswith("cmpl-"):
        return "plain_completion"
    answer = right_answer(row)
    if not answer:
        return "no_right_answer"
    turns = [Turn(role=one["role"], content=one["content"]) for one in row["messages"]
             if one.get("role") in ROLES and one.get("content")]  # fmt: skip
    if not turns or turns[-1].role != "user":
        return "no_question"
    passage = _passage(row["citations"])
    served = turns[-1].content
    question = asked_in(served, passage.text, ask) if passage else served
    if spans and passage:
        turns[-1] = Turn(role="user", content=ask(passage.text, question))
    if mask:
        turns = [Turn(role=one.role, content=masked(one.content)) for one in turns]
        question, answer = masked(question), masked(answer)
        passage = _masked_passage(passage) if passage else None
    declines = bool(refusal) and normalize_answer(answer) == normalize_answer(refusal)
    place = place_of(answer, passage.text) if passage and not declines else None
    if spans and not declines and place is None:
        return "not_in_passage"
    conversation = sum(one.role == "user" for one in turns) > 1
    example = Example(
        id=short_id("feedback", row["id"]),
        kind="refusal" if declines else "conversation" if conversation else "qa",
        turns=(*turns, Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,),
        provenance=Provenance(
            document=passage.document if passage else "feedback",
            chunk=passage.id if passage else "",
            span=place,
            prompt=FEEDBACK,
        ),
    )
    return Candidate(row["id"], example, passage)


def question_in(row: Mapping[str, Any], ask: Ask) -> str:
    """What was asked last, without the passage that was put before it."""
    content = str(row["messages"][-1]["content"]) if row["messages"] else ""
    passage = _passage(row["citations"])
    return asked_in(content, passage.text, ask) if passage else content


def asked_in(content: str, passage: str, ask: Ask) -> str:
    """The question in a user turn that shows a passage; the whole turn where it is laid out in
    another way, as by a client that brings passages of its own."""
    before, _, after = ask(passage, PLACEHOLDER).partition(PLACEHOLDER)
    if content.startswith(before) and content.endswith(after) and before + after != content:
        return content[len(before) : len(content) - len(after)].strip()
    return content


def _passage(citations: Any) -> Chunk | None:
    """The first passage that the answer was from."""
    if not citations or not str(citations[0].get("text", "")).strip():
        return None
    one = citations[0]
    return Chunk(
        id=str(one["chunk"]),
        document=str(one["document"]),
        source=str(one["source"]),
        start=int(one["start"]),
        end=int(one["end"]),
        pages=tuple(one.get("pages") or ()),
        tokens=text_tokens(one["text"]),
        text=one["text"],
    )


def _masked_passage(passage: Chunk) -> Chunk:
    """The passage without personal data, under a name of its own if that changes it: the run's
    documents hold it as it is."""
    text = masked(passage.text)
    if text == passage.text:
        return passage
    return passage.model_copy(
        update={"text": text, "id": short_id("masked", passage.id), "tokens": text_tokens(text)}
    )
