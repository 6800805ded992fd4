"""Multiple-choice and fill-in-the-blank rows become plain questions with their answers.

In: a ready-made row. Out: one row or more (one for each blank), or the reason why none can be
made. The choices may stand in the row's `options` or in the question, lettered or numbered, on
lines or in a line; the answer may be a letter, a number or the words of a choice. Everything is
done by rules, nothing by a model. Knows nothing of splits; `blanks.py` knows the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from potstill.core.blanks import ANY_BLANK
from potstill.curate.blanks import statement_question, true_or_false, without_blank
from potstill.curate.choices import UnconvertibleError, read_choices, right_choice
from potstill.curate.rewriting import asking_turn, with_turn
from potstill.curate.text import words
from potstill.records import Example, Span, short_id

NEEDS_CHOICES = re.compile(
    r"\b(?:EXCEPT|LEAST|NOT)\b|\b(?:true|false|correct|incorrect|wrong|odd one out)\b(?!.*_)"
    r"(?=.*\b(?:of (?:the following|these)|statement|option|following)\b)"
    r"|\bwhich (?:statement|option|answer|choice|sentence)\b|\bbest (?:answer|describes)\b"
    r"|\b(?:statement|option|following)\b.*\b(?:true|false|correct|incorrect|wrong)\b"
    r"|\b[Ww]hich (?:one )?of (?:the following|these)\b.*\b(?:not|never|except|cannot|least|an?)\b",
)
INSTRUCTION = re.compile(
    r"^\s*(?:(?:please )?(?:choose|select|pick|mark|tick|circle|identify) "
    r"(?:the |one )?(?:correct|right|best|most suitable|appropriate)?\s*"
    r"(?:answer|option|choice|alternative|word|one)s?\b(?: (?:below|from the (?:list|options)))?"
    r"|fill in the (?:blank|gap|blanks|gaps)|complete the (?:sentence|statement)"
    r"|multiple choice|q(?:uestion)?(?: ?\d+)?)\s*[.:]\s*",
    re.IGNORECASE,
)
FOLLOWING = (
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these)(?: options| choices)? "
                r"(?=(?:is|are|was|were) (?:the|called|known)\b)"), r"\1hat "),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these) (\w+)ies\b"), r"\1hich \2y"),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these) (\w+(?:s|x|ch|sh))es\b"),
     r"\1hich \2"),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these) (\w+)s\b"), r"\1hich \2"),
)  # fmt: skip
LEFT = re.compile(r"\b(?:the following|of these|these options|below)\b", re.IGNORECASE)
NAMES_CHOICE = re.compile(r"\b(?i:option|choice|answer)s? (?:is )?[(\[]?[A-J1-9][)\]]?(?!\w)")
APART = re.compile(r"\s*(?:;|\||\n|/)\s*")
LISTED = re.compile(r"\s*(?:,|\band\b)\s*")


def convert(example: Example, passage: str = "", language: str = "en") -> list[Example]:
    """The plain questions of a multiple-choice or fill-in-the-blank row, the first with its id.

    passage: what the row is asked about, to find the answer's place in it. language: of the row;
    questions in any are converted, sentences in English alone.
    Errors: UnconvertibleError with one of the reasons empty_answer, no_options, ambiguous_answer,
    answer_not_an_option, several_right_options, answer_refers_to_options, asks_about_options,
    no_blank, blanks_do_not_match, no_question, no_rules_for_language.
    """
    if not any(answer.strip() for answer in example.answers):
        raise UnconvertibleError("empty_answer", "the row has no answer")
    stem, answers = example.question, example.answers
    if example.kind == "multiple_choice":
        choices = read_choices(example.question, example.options)
        answer = right_choice(example.answers, choices.options, choices.numbered)
        stem, answers = plain_stem(choices.stem), (answer,)
        truth = true_or_false(stem, choices.options, answer) if language == "en" else None
        if truth:
            return [_rebuilt(example, *truth, passage, 0)]
    elif example.kind == "fill_in_the_blank":
        if not ANY_BLANK.search(stem):
            raise UnconvertibleError("no_blank", f"no blank in {stem!r}")
        if example.options:  # a word bank: the answer may be a letter of it
            answers = (right_choice(answers, example.options),)
        stem = INSTRUCTION.sub("", stem).strip()
    if not words(ANY_BLANK.sub("", stem)):
        raise UnconvertibleError("no_question", "nothing is left beside choices or blanks")
    if language != "en" and not stem.endswith(("?", "\uff1f", "\u061f")):
        raise UnconvertibleError("no_rules_for_language", f"{language}: {stem!r}")
    pairs = _pairs(stem, answers)
    return [
        _rebuilt(example, question, right, passage, number)
        for number, (question, right) in enumerate(pairs)
    ]


def _pairs(stem: str, answers: Sequence[str]) -> list[tuple[str, str | tuple[str, ...]]]:
    """Questions and answers of a stem: one for each blank, the other blanks filled in."""
    blanks = list(ANY_BLANK.finditer(stem))
    if not blanks:
        question = stem if stem.endswith("?") else statement_question(stem, answers[0])
        return [(question, tuple(answers))]
    if len(blanks) == 1:
        return [(without_blank(stem, answers[0]), tuple(answers))]
    filled = _one_each(answers, len(blanks))
    pairs: list[tuple[str, str | tuple[str, ...]]] = []
    for wanted in range(len(blanks)):
        parts, place = [], 0
        for number, blank in enumerate(blanks):
            parts += [stem[place : blank.start()], "____" if number == wanted else filled[number]]
            place = blank.end()
        text = "".join(parts) + stem[place:]
        pairs.append((without_blank(text, filled[wanted]), filled[wanted]))
    return pairs


def _one_each(answers: Sequence[str], count: int) -> list[str]:
    """An answer for each blank. Errors: UnconvertibleError if they are not as many."""
    if len(answers) == count:
        return [answer.strip() for answer in answers]
    for separator in (APART, LISTED):
        parts = [part for part in separator.split(answers[0].strip()) if part]
        if len(answers) == 1 and len(parts) == count:
            return parts
    raise UnconvertibleError(
        "blanks_do_not_match", f"{count} blanks, {' / '.join(answers)!r} as answer"
    )


def plain_stem(stem: str) -> str:
    """A stem that no longer speaks of choices. Errors: UnconvertibleError if it needs them."""
    stem = INSTRUCTION.sub("", stem).strip()
    if NEEDS_CHOICES.search(stem):
        raise UnconvertibleError("asks_about_options", stem)
    for pattern, instead in FOLLOWING:
        stem = pattern.sub(instead, stem)
    if LEFT.search(stem):
        raise UnconvertibleError("asks_about_options", stem)
    return stem


def _without_choices(text: str, options: Sequence[str]) -> str:
    """What follows the choices, where the text lists them all in order."""
    end = 0
    for option in options:
        place = text.find(option, end)
        if place < 0:
            return text
        end = place + len(option)
    return text[end:]


def _rebuilt(
    example: Example, question: str, answer: str | tuple[str, ...], passage: str, number: int
) -> Example:
    """The converted row; its user turn asks the new question after what stood before the old."""
    answers = (answer,) if isinstance(answer, str) else answer
    answers = tuple(dict.fromkeys(one.strip() for one in answers if one.strip()))
    turn = asking_turn(example)
    after = ""
    if turn is not None:
        before, _, after = example.turns[turn].content.rpartition(example.question)
        after = _without_choices(after, example.options)
    else:  # the question was laid out in another way: its passage is what must stay
        turn = max(place for place, one in enumerate(example.turns) if one.role != "assistant")
        before = f"{passage}\n\n" if passage and passage in example.turns[turn].content else ""
    asked = with_turn(example, turn, before + question + after)
    last = len(asked.turns) - 1
    start = passage.find(answers[0]) if passage else -1
    span = Span(start=start, end=start + len(answers[0])) if start >= 0 else None
    return with_turn(
        asked,
        last,
        answers[0],
        id=example.id if number == 0 else short_id(example.id, "blank", str(number)),
        kind="qa",
        question=question,
        answers=answers,
        options=(),
        reasoning="" if NAMES_CHOICE.search(example.reasoning) else example.reasoning,
        provenance=example.provenance.model_copy(update={"span": span}),
    )
