"""Judges one row by itself: is it a question and an answer that a student should learn?

In: an example and what is known around it. Out: a `Verdict` with a reason for counting and a
detail for people. Knows nothing of other rows, splits or models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from potstill.curate import personal
from potstill.curate.config import CurateConfig
from potstill.curate.text import COMMON, words
from potstill.records import Example, Verdict

KEEP = Verdict(keep=True)
UNASKED = frozenset({"multiple_choice", "fill_in_the_blank", "conversation", "summary", "refusal"})
"""Kinds whose question need not be a question by its form."""
ASKING = frozenset(
    """am are can could describe did do does explain give has have how in is list may might name
    on should under was were what when where which who whom whose why will would""".split()
)
WH = frozenset("how what when where which who whom whose why".split())
TRUTH = frozenset({"yes", "no", "true", "false"})
"""Answers that no passage has to hold word for word."""
CONTEXT_DEPENDENT = re.compile(
    r"\b(the|this|that|given|provided)\s+(above\s+|following\s+|given\s+)?"
    r"(passage|text|paragraph|excerpt|context|sentence|document|section above|article)\b"
    r"|\b(mentioned|described|stated|given|listed|shown)\s+(above|below|here)\b"
    r"|\b(table|figure|list|section|chapter|example|diagram|chart)\s+(above|below)\b"
    r"|\b(above|below|following)\s+(table|figure|list|section|chapter|example|diagram|chart)\b"
    r"|\bthis\s+(section|chapter|figure|diagram|chart|excerpt)\b"
    r"|\b(the author|the narrator|the speaker)\b",
    re.IGNORECASE,
)
LEAKED = re.compile(
    r"<\|?\s*(im_start|im_end|endoftext|system|user|assistant|think|eot_id)|\[/?INST\]|<</?SYS>>"
    r"|^#{2,} ?(instruction|response|input|question|answer)\b"
    r"|\b(as an ai\b|language model|json|system prompt|question-answer pair"
    r"|write (a|one) question|here (is|are) (a|the) (question|answer)"
    r"|(ignore|disregard|forget) (all |any |the )*(previous|prior|above|earlier) "
    r"(instructions?|prompts?|text)"
    r"|i (cannot|can't|am unable to) (fulfil|fulfill|assist|help) (with )?(that|this|your))",
    re.IGNORECASE | re.MULTILINE,
)
MARKUP = re.compile(r"</?[a-z][^>]*>|[\x00-\x08\x0b-\x1f\ufffd]|\{\"|\"\}|```", re.IGNORECASE)
UNSAFE = re.compile(
    r"<\s*/?\s*(script|iframe|object|embed|form|svg|link|meta|base)\b"
    r"|\b(java|vb)script\s*:|\bdata\s*:\s*text/html|\bon[a-z]{3,20}\s*=\s*[\"']"
    r"|[\u202a-\u202e\u2066-\u2069]",  # turn the reading direction: what is seen is not what is
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Surroundings:
    """What a row is judged by besides itself."""

    config: CurateConfig
    passage: str | None = None
    """The text of its chunk; None for a row without a passage."""
    language: str = ""
    """What it should be written in; empty: any."""
    found: str = ""
    """What it clearly is written in; empty: not told."""


Check = Callable[[Example, Surroundings], Verdict]


def judge(example: Example, around: Surroundings, checks: Sequence[Check] | None = None) -> Verdict:
    """The first reason to reject the row, or a verdict that keeps it. checks: `CHECKS` if not
    others."""
    for check in CHECKS if checks is None else checks:
        verdict = check(example, around)
        if not verdict.keep:
            return verdict
    return KEEP


def reject(reason: str, detail: str) -> Verdict:
    """A verdict against a row."""
    return Verdict(keep=False, reason=reason, detail=detail)


def answer_of(example: Example) -> str:
    """The answer that is taught."""
    return example.answers[0] if example.answers else ""


def _says_something(example: Example, around: Surroundings) -> Verdict:
    if not words(example.question):
        return reject("empty_question", "the question has no word")
    if not words(answer_of(example)):
        return reject("empty_answer", "the answer has no word")
    return KEEP


def _lengths(example: Example, around: Surroundings) -> Verdict:
    config = around.config
    asked, said = len(words(example.question)), len(words(answer_of(example)))
    if asked < config.shortest_question_words:
        return reject("question_too_short", f"{asked} words")
    if asked > config.longest_question_words:
        return reject("question_too_long", f"{asked} words")
    if said > config.longest_answer_words:
        return reject("answer_too_long", f"{said} words")
    return KEEP


def _is_question(example: Example, around: Surroundings) -> Verdict:
    question = example.question.rstrip()
    if example.kind in UNASKED or example.provenance.variant:
        return KEEP  # a casual variant may do without the mark
    if question.endswith(("?", "\uff1f", "\u061f", "\u037e")):
        return KEEP
    found = words(question)
    if not example.provenance.teacher and (found[0] in ASKING or not WH.isdisjoint(found)):
        return KEEP  # people leave the mark out
    return reject("not_a_question", f"ends with {question[-12:]!r}")


def _clean(example: Example, around: Surroundings) -> Verdict:
    for text in (example.question, answer_of(example)):
        if found := UNSAFE.search(text):
            return reject("unsafe_markup", f"contains {found.group()!r}")
        found = LEAKED.search(text)
        if found and found.group().casefold() not in (around.passage or "").casefold():
            return reject("leaked_instruction", f"contains {found.group()!r}")
        if found := MARKUP.search(text):
            return reject("markup", f"contains {found.group()!r}")
    return KEEP


def _stands_alone(example: Example, around: Surroundings) -> Verdict:
    if example.kind in {"conversation", "summary"}:
        return KEEP  # their passage is part of what is asked about
    if found := CONTEXT_DEPENDENT.search(example.question):
        return reject("context_dependent", f"asks about {found.group()!r}")
    return KEEP


def _repeats(example: Example, around: Surroundings) -> Verdict:
    for text in (example.question, answer_of(example)):
        found = words(text)
        triples = Counter(zip(found, found[1:], found[2:], strict=False))
        if triples and triples.most_common(1)[0][1] >= 3:
            return reject("repetition", f"says {' '.join(triples.most_common(1)[0][0])!r} thrice")
        if len(found) >= 8 and len(set(found)) < 0.4 * len(found):
            return reject("repetition", f"{len(set(found))} different words of {len(found)}")
    return KEEP


def _language(example: Example, around: Surroundings) -> Verdict:
    if around.found and around.language and around.found != around.language:
        return reject("other_language", f"{around.found} instead of {around.language}")
    return KEEP


def _personal(example: Example, around: Surroundings) -> Verdict:
    if around.config.personal_data == "drop" and (kinds := personal.kinds_in(example)):
        return reject("personal_data", f"holds {', '.join(kinds)}")
    if around.config.personal_data == "mask" and personal.only_masks(answer_of(example)):
        return reject("answer_is_personal_data", answer_of(example))
    return KEEP


def _supported(example: Example, around: Surroundings) -> Verdict:
    said = words(answer_of(example))
    if around.passage is None or example.kind == "refusal" or TRUTH.issuperset(said):
        return KEEP
    if example.options and len("".join(said)) == 1:
        return KEEP  # a choice's letter
    present = set(words(around.passage))
    if example.kind == "conversation":  # it may rest on several passages, in its other turns
        present.update(word for turn in example.turns[:-1] for word in words(turn.content))
    tell = [word for word in said if word not in COMMON] or said
    share = sum(word in present for word in tell) / len(tell)
    if share < around.config.support:
        return reject("unsupported", f"{share:.0%} of the answer's words stand in the chunk")
    return KEEP


def _informative(example: Example, around: Surroundings) -> Verdict:
    if example.options or example.kind in {"conversation", "refusal"}:
        return KEEP  # a choice is named by the question itself
    tell = [word for word in words(answer_of(example)) if word not in COMMON]
    if tell and set(tell) <= set(words(example.question)):
        return reject("answer_in_question", "every telling word of the answer is in the question")
    return KEEP


CHECKS: tuple[Check, ...] = (
    _says_something,
    _lengths,
    _personal,
    _is_question,
    _clean,
    _stands_alone,
    _repeats,
    _language,
    _supported,
    _informative,
)
REVIEWED: tuple[Check, ...] = (_says_something, _personal, _clean)
"""Of rows that a person has read: their form is not judged again."""
