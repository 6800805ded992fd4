"""Judges one row by itself: is it a question and an answer that a student should learn?

In: an example and the text of its chunk. Out: a `Verdict` with a reason for counting and a detail
for people. Knows nothing of other rows, splits or models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from potstill.curate.config import CurateConfig
from potstill.records import Example, Verdict

KEEP = Verdict(keep=True)
WORD = re.compile(r"\w+", re.UNICODE)
# Words too common to show that an answer rests on its chunk, or differs from its question.
COMMON = frozenset(
    """a an and are as at be been by can do does for from had has have in into is it its may must
    no not of on one or so than that the their them then there these they this to was were what
    when where which who why will with would yes""".split()
)
CONTEXT_DEPENDENT = re.compile(
    r"\b(the|this|that|given|provided)\s+(above\s+|following\s+|given\s+)?"
    r"(passage|text|paragraph|excerpt|context|sentence|document|section above|article)\b"
    r"|\b(mentioned|described|stated|given|listed|shown)\s+(above|below|here)\b"
    r"|\bthe author\b",
    re.IGNORECASE,
)
LEAKED = re.compile(
    r"<\|?\s*(im_start|im_end|endoftext|system|user|assistant)"
    r"|\b(as an ai\b|language model|json|question-answer pair|write (a|one) question"
    r"|here (is|are) (a|the) (question|answer))",
    re.IGNORECASE,
)
MARKUP = re.compile(r"</?[a-z][^>]*>|[\x00-\x08\x0b-\x1f\ufffd]|\{\"|\"\}|```", re.IGNORECASE)
Check = Callable[[Example, str, CurateConfig], Verdict]


def words(text: str) -> list[str]:
    """The words of a text, lower-case, in order; punctuation is dropped."""
    return WORD.findall(text.lower())


def judge(example: Example, passage: str, config: CurateConfig) -> Verdict:
    """The first reason to reject the row, or a verdict that keeps it."""
    for check in CHECKS:
        verdict = check(example, passage, config)
        if not verdict.keep:
            return verdict
    return KEEP


def _reject(reason: str, detail: str) -> Verdict:
    return Verdict(keep=False, reason=reason, detail=detail)


def _answer(example: Example) -> str:
    return example.answers[0] if example.answers else ""


def _lengths(example: Example, passage: str, config: CurateConfig) -> Verdict:
    asked, said = len(words(example.question)), len(words(_answer(example)))
    if asked == 0:
        return _reject("empty_question", "the question has no word")
    if said == 0:
        return _reject("empty_answer", "the answer has no word")
    if asked < config.shortest_question_words:
        return _reject("question_too_short", f"{asked} words")
    if asked > config.longest_question_words:
        return _reject("question_too_long", f"{asked} words")
    if said > config.longest_answer_words:
        return _reject("answer_too_long", f"{said} words")
    return KEEP


def _is_question(example: Example, passage: str, config: CurateConfig) -> Verdict:
    if not example.question.rstrip().endswith("?"):
        return _reject("not_a_question", f"ends with {example.question.rstrip()[-12:]!r}")
    return KEEP


def _clean(example: Example, passage: str, config: CurateConfig) -> Verdict:
    for text in (example.question, _answer(example)):
        if found := LEAKED.search(text):
            return _reject("leaked_instruction", f"contains {found.group()!r}")
        if found := MARKUP.search(text):
            return _reject("markup", f"contains {found.group()!r}")
    return KEEP


def _stands_alone(example: Example, passage: str, config: CurateConfig) -> Verdict:
    if found := CONTEXT_DEPENDENT.search(example.question):
        return _reject("context_dependent", f"asks about {found.group()!r}")
    return KEEP


def _repeats(example: Example, passage: str, config: CurateConfig) -> Verdict:
    for text in (example.question, _answer(example)):
        found = words(text)
        triples = Counter(zip(found, found[1:], found[2:], strict=False))
        if triples and triples.most_common(1)[0][1] >= 3:
            return _reject("repetition", f"says {' '.join(triples.most_common(1)[0][0])!r} thrice")
        if len(found) >= 8 and len(set(found)) < 0.4 * len(found):
            return _reject("repetition", f"{len(set(found))} different words of {len(found)}")
    return KEEP


def _supported(example: Example, passage: str, config: CurateConfig) -> Verdict:
    said = words(_answer(example))
    telling = [word for word in said if word not in COMMON] or said
    present = set(words(passage))
    share = sum(word in present for word in telling) / len(telling)
    if share < config.support:
        return _reject("unsupported", f"{share:.0%} of the answer's words stand in the chunk")
    return KEEP


def _informative(example: Example, passage: str, config: CurateConfig) -> Verdict:
    telling = [word for word in words(_answer(example)) if word not in COMMON]
    if telling and set(telling) <= set(words(example.question)):
        return _reject("answer_in_question", "every telling word of the answer is in the question")
    return KEEP


CHECKS: tuple[Check, ...] = (
    _lengths,
    _is_question,
    _clean,
    _stands_alone,
    _repeats,
    _supported,
    _informative,
)
