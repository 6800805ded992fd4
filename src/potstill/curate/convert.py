"""Multiple-choice and fill-in-the-blank rows become plain questions with their answers.

In: a ready-made row. Out: one row or more (one for each blank), or the reason why none can be
made. The choices may stand in the row's `options` or in the question, lettered or numbered, on
lines or in a line; the answer may be a letter, a number or the words of a choice. Everything is
done by rules, nothing by a model. Knows nothing of splits; `blanks.py` knows the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from potstill.curate.blanks import BLANK, statement_question, true_or_false, without_blank
from potstill.curate.rewriting import asking_turn, with_turn
from potstill.curate.text import words
from potstill.records import Example, Span, short_id

SIGN = r"[A-Ja-j]|[1-9]|10|[ivx]{1,4}"
MARK = re.compile(rf"(?:(?<=\s)|^)(?:[(\[](?P<a>{SIGN})[)\]]|(?P<b>{SIGN})[).:](?=\s|\S\S))")
ROMAN = "i ii iii iv v vi vii viii ix x".split()
SOLUTION = re.compile(
    r"\s*\b(?:(?:correct|right) )?(?:answer|ans|key)\s*[:=.]\s*\S.*$", re.I | re.S
)
LETTERS = "abcdefghij"
HEADING = re.compile(r"\s*\b(?:options|choices|answers)\s*:\s*$", re.IGNORECASE)
REFERS = re.compile(
    r"\b(?:all|none|both|neither|any|either|each)(?: of)? (?:the |these |those )?"
    r"(?:above|following|options|choices|answers|these|those)\b|^(?:both|neither) [a-j]\b"
    r"|^[a-j](?:,| and| or| &) [a-j]\b|^all of them\b|^none of them\b",
    re.IGNORECASE,
)
NEEDS_CHOICES = re.compile(
    r"\b(?:EXCEPT|LEAST|NOT)\b|\b(?:true|false|correct|incorrect|wrong|odd one out)\b(?!.*_)"
    r"(?=.*\b(?:of (?:the following|these)|statement|option|following)\b)"
    r"|\bwhich (?:statement|option|answer|choice|sentence)\b|\bbest (?:answer|describes)\b"
    r"|\b(?:statement|option|following)\b.*\b(?:true|false|correct|incorrect|wrong)\b",
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
                r"(?=is|are|was|were|can|could|has|have|does|did|will|would|must|should|may)"),
     r"\1hat "),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these) (\w+)ies\b"), r"\1hich \2y"),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these) (\w+(?:s|x|ch|sh))es\b"),
     r"\1hich \2"),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these) (\w+)s\b"), r"\1hich \2"),
    (re.compile(r"\b([Ww])hich (?:one )?of (?:the following|these)\b"), r"\1hat"),
)  # fmt: skip
ANSWER_LETTER = re.compile(
    r"^\s*(?:the )?(?:correct |right |best )?(?:(?:answer|option|choice)(?: is)?\s*:?\s*)?"
    r"[(\[]?(?P<mark>[A-Ja-j]|[0-9]|10)[)\].:]?\s*$",
    re.IGNORECASE,
)
ANSWER_BOTH = re.compile(r"^\s*[(\[]?(?P<mark>[A-Ja-j]|[1-9]|10)[)\].:]\s*(?P<text>\S.*)$", re.S)
SEVERAL = re.compile(r"^\s*[A-J](?:\s*(?:,|;|/|&|\band\b)\s*[A-J])+\s*$", re.IGNORECASE)
NAMES_CHOICE = re.compile(r"\b(?i:option|choice|answer)s? (?:is )?[(\[]?[A-J1-9][)\]]?(?!\w)")
APART = re.compile(r"\s*(?:;|\||\n|/)\s*")
LISTED = re.compile(r"\s*(?:,|\band\b)\s*")


class UnconvertibleError(Exception):
    """Why a row cannot be converted: `reason` for counting, `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Choices:
    """A question without its choices, and they."""

    stem: str
    options: tuple[str, ...]


def convert(
    example: Example, passage: str = "", language: str = "en", *, from_zero: bool = False
) -> list[Example]:
    """The plain questions of a multiple-choice or fill-in-the-blank row, the first with its id.

    passage: what the row is asked about, to find the answer's place in it. language: of the row;
    questions in any are converted, sentences in English alone. from_zero: the number 0 is the
    first choice.
    Errors: UnconvertibleError with one of the reasons empty_answer, no_options,
    answer_not_an_option, several_right_options, answer_refers_to_options, asks_about_options,
    no_blank, blanks_do_not_match, no_question, no_rules_for_language.
    """
    if not any(answer.strip() for answer in example.answers):
        raise UnconvertibleError("empty_answer", "the row has no answer")
    stem, answers = example.question, example.answers
    if example.kind == "multiple_choice":
        choices = read_choices(example.question, example.options)
        answer = right_choice(example.answers, choices.options, from_zero)
        stem, answers = plain_stem(choices.stem), (answer,)
        truth = true_or_false(stem, choices.options, answer) if language == "en" else None
        if truth:
            return [_rebuilt(example, *truth, passage, 0)]
    elif example.kind == "fill_in_the_blank":
        if not BLANK.search(stem):
            raise UnconvertibleError("no_blank", f"no blank in {stem!r}")
        if example.options:  # a word bank: the answer may be a letter of it
            answers = (right_choice(answers, example.options, from_zero),)
        stem = INSTRUCTION.sub("", stem).strip()
    if not words(BLANK.sub("", stem)):
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
    blanks = list(BLANK.finditer(stem))
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


def read_choices(question: str, options: Sequence[str]) -> Choices:
    """Question and choices apart. Errors: UnconvertibleError with no_options."""
    given = tuple(one.strip() for one in options if one.strip())
    found = _inline(question)
    if len(given) >= 2:
        cleaned = tuple(_unmarked(one, place) for place, one in enumerate(given))
        repeated = found and {_plain(one) for one in found.options} == set(map(_plain, cleaned))
        return Choices(found.stem if found and repeated else question.strip(), cleaned)
    if found is None:
        raise UnconvertibleError("no_options", f"no choices in {question[-60:]!r} or in columns")
    return found


def _inline(question: str) -> Choices | None:
    """The choices that stand in a question: A) … B) …, from the first mark on, in order."""
    marks = list(MARK.finditer(question))
    for number, first in enumerate(marks):
        kind = _kind(first)
        if _rank(first, kind) != 0 or not question[: first.start()].strip():
            continue
        run: list[re.Match[str]] = []
        for mark in marks[number:]:
            if _kind(mark, kind) == kind and _rank(mark, kind) == len(run):
                run.append(mark)
        if len(run) < 2:
            continue
        ends = [one.start() for one in run[1:]] + [len(question)]
        options = [
            SOLUTION.sub("", question[one.end() : end]).strip().rstrip(",;").strip()
            for one, end in zip(run, ends, strict=True)
        ]
        if all(options):
            return Choices(HEADING.sub("", question[: first.start()]).strip(), tuple(options))
    return None


def _kind(mark: re.Match[str], like: tuple[str, str] | None = None) -> tuple[str, str]:
    """What marks of one list share: numerals or case, and the signs around them.

    like: the list's kind, where it is known; "i" is a letter after h, else a Roman one.
    """
    sign = mark["a"] or mark["b"]
    case = "digit" if sign.isdigit() else "upper" if sign.isupper() else "lower"
    if sign in ROMAN and not (like and like[0] == "lower"):
        case = "roman"
    return case, mark[0].replace(sign, "")


def _rank(mark: re.Match[str], kind: tuple[str, str]) -> int:
    sign = mark["a"] or mark["b"]
    if kind[0] == "roman":
        return ROMAN.index(sign)
    return int(sign) - 1 if sign.isdigit() else LETTERS.find(sign.lower())


def _unmarked(option: str, place: int) -> str:
    """A choice of a column without a mark of its own, if it is the one of its place."""
    found = ANSWER_BOTH.match(option)
    if found and _place(found["mark"]) == place:
        return found["text"].strip()
    return option


def _place(mark: str) -> int:
    return int(mark) - 1 if mark.isdigit() else LETTERS.index(mark.lower())


def right_choice(answers: Sequence[str], options: Sequence[str], from_zero: bool = False) -> str:
    """The words of the right choice. Errors: UnconvertibleError names what is wrong."""
    plain = [_plain(option) for option in options]
    found = [_choice(answer, plain, from_zero) for answer in answers]
    if any(SEVERAL.match(answer) for answer in answers) and None in found:
        raise UnconvertibleError("several_right_options", " / ".join(answers))
    places = {place for place in found if place is not None}
    if not places:
        raise UnconvertibleError(
            "answer_not_an_option", f"{answers[0]!r} is none of {', '.join(options)}"
        )
    if len(places) > 1:
        raise UnconvertibleError("several_right_options", " / ".join(answers))
    right = options[places.pop()].strip().rstrip(".").strip()
    if REFERS.search(right):
        raise UnconvertibleError("answer_refers_to_options", right)
    return right


def _choice(answer: str, plain: Sequence[str], from_zero: bool) -> int | None:
    """Which choice an answer names: by its words, else by letter or number, else by both."""
    if _plain(answer) in plain:
        return plain.index(_plain(answer))
    mark = ANSWER_LETTER.match(answer)
    if mark:
        place = _place(mark["mark"]) + (from_zero and mark["mark"].isdigit())
        if 0 <= place < len(plain):
            return place
    both = ANSWER_BOTH.match(answer)
    if both and _plain(both["text"]) in plain:
        return plain.index(_plain(both["text"]))
    return None


def _plain(text: str) -> str:
    return " ".join(words(text)) or text.strip()


def has_choices(example: Example) -> bool:
    """Whether the question of a plain row lists choices, and its answer is one of them."""
    found = _inline(example.question)
    try:
        return found is not None and bool(right_choice(example.answers, found.options))
    except UnconvertibleError:
        return False


def counts_from_zero(examples: Iterable[Example]) -> set[str]:
    """The documents whose answers number the choices from 0: those in which a row says 0."""
    return {
        one.provenance.document
        for one in examples
        if one.options and "0" in one.answers and "0" not in one.options
    }


def plain_stem(stem: str) -> str:
    """A stem that no longer speaks of choices. Errors: UnconvertibleError if it needs them."""
    stem = INSTRUCTION.sub("", stem).strip()
    if NEEDS_CHOICES.search(stem):
        raise UnconvertibleError("asks_about_options", stem)
    for pattern, instead in FOLLOWING:
        stem = pattern.sub(instead, stem)
    if re.search(r"\b(?:the following|these options|below)\b", stem):
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
