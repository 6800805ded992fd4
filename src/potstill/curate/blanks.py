"""A sentence with a blank becomes a question, by rules of English word order.

In: a sentence with one blank, and what belongs into it. Out: a question.

    The kiln is lit at ____.         At what time is the kiln lit?
    ____ keeps the spare valves.     Who keeps the spare valves?
    The boiler can hold ____ litres. How many litres can the boiler hold?
    The lamp burns ____.             The lamp burns what?

An auxiliary verb before the blank changes places with its subject. Without one the sentence keeps
its order, with a question word in the blank's place, for to know its verb would need a parser.
Other languages keep theirs always. Knows nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from potstill.core.blanks import ANY_BLANK

HAVE = frozenset(("has", "have", "had"))
AUXILIARY = HAVE | frozenset(
    "is are was were can could may might must shall should will would".split()
)
PARTICIPLES = frozenset("become begun built held kept led lost made met paid put run set".split())
CLAUSE = frozenset("that which who whom whose where when if because while although since".split())
PREPOSITIONS = frozenset(
    """about above after against among around at before behind below between beyond by during
    for from in inside into near of off on onto over past since through to toward towards under
    until upon via with within without""".split()
)
BEFORE_YEARS = frozenset("in by since until before after from during to of".split())
UNITS = frozenset(
    "kg g mg t km m cm mm l ml kW W V A Hz kHz GB MB bar psi feet people % °C".split()
)
ARTICLES = frozenset(("a", "an", "the"))
PLAIN_NAMES = frozenset(  # begin a sentence with a capital only because it begins there
    """a an the this that these those its his her their our your my each every all both some any no
    one two three in on at by for from to of with after before during under over when while it he
    she they we you there most many few several if as""".split()
)
MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
YEAR = re.compile(r"(?:1[0-9]|20)\d\d(?: ?(?:AD|BC|CE))?")
CLOCK = re.compile(r"\d{1,2}[:.]\d{2}(?: ?[ap]\.?m\.?)?|\d{1,2} ?[ap]\.?m\.?|noon|midnight", re.I)
DATE = re.compile(rf"\b(?:{MONTHS})\b.*\d|\d.*\b(?:{MONTHS})\b|\d{{4}}-\d\d-\d\d", re.I)
MONTH = re.compile(rf"(?:{MONTHS})", re.I)
DAY = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?", re.I)
NUMBER = re.compile(
    r"(?:about |around |over |nearly )?(?:[\d.,]+|one|two|three|four|five|six|seven|eight|nine|ten"
    r"|eleven|twelve|twenty|thirty|forty|fifty|hundred|a hundred|thousand)",
    re.I,
)
MEASURED = re.compile(r"(?P<number>[\d.,]+) (?P<unit>[a-z]+s)(?P<rest> .*)?")
PERSON = re.compile(r"(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Sir|Lady|Lord|Captain|President|King"
                    r"|Queen|Pope|Saint|St)\.? [A-Z]")  # fmt: skip
DONE_BY_PEOPLE = frozenset(
    """wrote invented discovered painted founded composed directed sang married said keeps kept
    signs signed led leads taught teaches commanded designed proved proposed developed""".split()
)
TRUE_FALSE = ({"true", "false"}, {"yes", "no"}, {"right", "wrong"}, {"correct", "incorrect"})


def without_blank(sentence: str, answer: str) -> str:
    """The question whose answer fills the sentence's one blank."""
    before, after = (part.strip() for part in ANY_BLANK.split(sentence, maxsplit=1))
    answer = answer.strip()
    if sentence.rstrip().endswith("?"):  # it is a question already, with a hole in it
        return _finished([before, _asking(answer, before, after)[0], after])
    head, stop, before = before.rpartition(". ")  # sentences before the one with the blank
    lead = head + stop
    before, after = before.rstrip(" ,:;-\u2013"), after.rstrip(" .?!:;")
    words = before.split()
    if words and words[-1].lower() in ARTICLES:
        if after.startswith("of "):  # inside of a name of something: no question word fits
            return lead + completed(f"{before} \N{HORIZONTAL ELLIPSIS} {after}")
        words = words[:-1]
    if words and words[-1].lower() == "every":
        return lead + _finished(_turned(words[:-1], "how often", after))
    last = words[-1].lower() if words else ""
    asking, rest = _asking(answer, last, after)
    if not words:
        if asking == "what" and rest.split()[:1] and rest.split()[0].lower() in DONE_BY_PEOPLE:
            asking = "who"
        return lead + _finished([asking, rest])
    if len(words) == 1 and last in PREPOSITIONS:  # In ____, the mill was founded.
        clause = rest.lstrip(", ").split()
        place = _auxiliary(clause)
        if place is not None:
            return lead + _finished([last, *_turned(clause[: place + 1], asking, ""),
                                     *clause[place + 1 :]])  # fmt: skip
    return lead + _finished(_turned(words, asking, rest))


def completed(gap: str) -> str:
    """The question for what no question word can stand for."""
    return f'What is missing in "{gap.rstrip(" .")}"?'


def _turned(words: Sequence[str], asking: str, rest: str) -> list[str]:
    """Question word, auxiliary, subject and what follows; the old order without an auxiliary."""
    place = _auxiliary(words)
    last = words[-1].lower()
    if place is None or last == "of":
        return [" ".join(words), asking, rest]
    auxiliary = words[place].lower()
    first = _small(words[0])
    if auxiliary in {"are", "were"} and first.endswith("s") and first[1:].islower():
        first = first.lower()  # a plural of things; names are seldom one
    verb = list(words[place + 1 :])
    beginning = [asking]
    if verb and verb[-1].lower() in PREPOSITIONS:
        beginning = [verb.pop().lower(), asking]
    elif verb and verb[-1] in {"called", "named"} and asking == "who":
        beginning = ["what"]
    return [*beginning, auxiliary, first, *words[1:place], *verb, rest]


def _auxiliary(words: Sequence[str]) -> int | None:
    """The main clause's auxiliary: the first that no relative clause has before it."""
    inside = False
    for place, word in enumerate(words):
        plain = word.lower().strip(",")
        if plain in CLAUSE:
            inside = True
        elif plain in AUXILIARY:
            if place == 0 or (plain in HAVE and not _participle(words, place + 1)):
                return None
            if not inside:
                return place
            inside = False
    return None


def _participle(words: Sequence[str], place: int) -> bool:
    """Whether a perfect's participle stands there: has burned, has been, had written."""
    follows = words[place].lower() if place < len(words) else ""
    return follows.endswith(("ed", "en")) or follows in PARTICIPLES


def _asking(answer: str, last: str, after: str) -> tuple[str, str]:
    """The question word for an answer, and what is left of the words after the blank.

    last: the word before it."""
    first, _, others = after.partition(" ")
    unit = first.strip(",.;")
    counted = unit in UNITS or (
        unit.isalpha() and len(unit) > 3 and unit.endswith("s") and not unit.endswith("ss")
    )
    year = YEAR.fullmatch(answer) and last in BEFORE_YEARS and not counted
    if NUMBER.fullmatch(answer) and not year:
        if counted:
            return f"how many {unit}", others if unit == first else f"{first[len(unit) :]} {others}"
        return ("what number", after) if not after else ("how many", after)
    if measured := MEASURED.fullmatch(answer):
        return f"how many {measured['unit']}{measured['rest'] or ''}", after
    for pattern, word in ((CLOCK, "what time"), (DATE, "what date"), (DAY, "which day")):
        if pattern.fullmatch(answer) or (pattern is DATE and pattern.search(answer)):
            return word, after
    if year:
        return "which year", after
    if MONTH.fullmatch(answer):
        return "which month", after
    if PERSON.match(answer):
        return ("whom" if last in PREPOSITIONS else "who"), after
    return "what", after


def statement_question(stem: str, answer: str) -> str:
    """The question of a stem that its answer finishes, or of an order such as "Name the valve."."""
    text = stem.strip()
    if order := re.match(r"(?:Name|State|Give|Identify|Specify|Define) (.+?)[.:!]?$", text):
        return _finished(["what is", order[1]])
    if order := re.match(r"(?:Find|Calculate|Compute|Determine) (.+?)[.:!]?$", text):
        return _finished(["what is", order[1]])
    first = text.split()[0].lower().strip(",")
    if first in {"what", "who", "when", "where", "which", "why", "how", "whose", "whom"}:
        return _finished([text.rstrip(" .:!")])
    text = text.rstrip(" .:;-")
    if _auxiliary(text.split()) is None and text.split()[-1].lower() not in PREPOSITIONS:
        return completed(f"{text} \N{HORIZONTAL ELLIPSIS}")
    return without_blank(f"{text} ____", answer)


def true_or_false(stem: str, options: Sequence[str], answer: str) -> tuple[str, str] | None:
    """ "Is it true that …?" and yes or no, where the choices are true and false."""
    kinds = {option.strip(" .").lower() for option in options}
    if kinds not in TRUE_FALSE or ANY_BLANK.search(stem):
        return None
    right = answer.strip(" .").lower() in {"true", "yes", "right", "correct"}
    if stem.rstrip().endswith("?"):
        return stem.strip(), "Yes" if right else "No"
    text = re.sub(r"^(?:true or false|t/f)\s*[:.?]\s*", "", stem.strip(), flags=re.I)
    words = text.rstrip(" .:").split()
    return _finished(["is it true that", _small(words[0]), *words[1:]]), "Yes" if right else "No"


def _small(word: str) -> str:
    """A sentence's first word inside one: "The" becomes "the", a name stays."""
    return word.lower() if word.lower() in PLAIN_NAMES else word


def _finished(parts: Sequence[str]) -> str:
    text = " ".join(" ".join(part for part in parts if part).split())
    text = re.sub(r" ([,.;:!?%])", r"\1", text).rstrip(" ,.;:?!")
    return text[:1].upper() + text[1:] + "?"
