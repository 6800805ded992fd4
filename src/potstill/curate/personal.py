"""Personal data in text: e-mail addresses, telephone, card and account numbers, IP addresses.

In: text or a row. Out: where they stand; the same with a mask such as [EMAIL] in their place.
Numbers that carry check digits are only taken if these are right: cards by Luhn's formula
(ISO/IEC 7812), accounts by IBAN's length and remainder modulo 97 (ISO 13616). Names and postal
addresses are not found: no pattern tells them from other words. Knows nothing of what is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from potstill.records import Example, Turn

EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])"
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?![a-z])")
CARD = re.compile(r"(?<![\w-])(?<!\d[.,])[2-6](?:[ -]?\d){12,18}(?![\w-])")
IP = re.compile(
    r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})"
    r"(?![\w:]|\.\w)"
)
MASK = re.compile(r"\[(?:EMAIL|IBAN|CARD|IP|PHONE)\]")
VERSION = re.compile(r"\b(?:v|version|release|section|chapter)\.? ?$", re.IGNORECASE)
GAP = r"[ ./\u2013-]?"
PHONE = re.compile(
    rf"(?<![\w.+-])(?<!\d[ -])(?:(?:\+|00)[1-9](?:{GAP}\(?\d\)?){{6,14}}"  # +49 30 1234567
    r"|\(?0\d{1,4}\)?[ /\u2013-]\d{3,4}(?:[ -]?\d{2,4}){1,3}"  # 030 1234567, (020) 7946 0958
    r"|(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])\d{3}[-. ]\d{4})(?![\w-]|[.,]\d)"  # (555) 123-4567
)
CALLED = re.compile(  # any number of six digits or more after such a word
    rf"\b(?:tel(?:ephone)?|phone|fax|mobile|cell|whatsapp)\b(?: number)?\.?(?: is| at)?:? ?"
    rf"(\(?\d\)?(?:{GAP}\(?\d\)?){{5,14}})(?![\w-]|[.,]\d)",
    re.IGNORECASE,
)
DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}")
# ISO 13616 registry: country and length of its account numbers.
IBAN_LENGTHS = {
    one[:2]: int(one[2:])
    for one in """AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24
    DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28
    IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19
    MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18
    SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30""".split()
}


@dataclass(frozen=True)
class Found:
    """A half-open range of a text and what stands there: EMAIL, IBAN, CARD, IP or PHONE."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Found]:
    """Everything personal in the text, in order, without overlaps."""
    taken: list[Found] = []
    if "@" not in text and not any(sign.isdigit() for sign in text):
        return taken
    for one in (*_mails(text), *_accounts(text), *_cards(text), *_hosts(text), *_phones(text)):
        if all(one.end <= other.start or other.end <= one.start for other in taken):
            taken.append(one)
    return sorted(taken, key=lambda one: one.start)


def masked(text: str) -> str:
    """The text with [EMAIL], [PHONE], ... in the place of what `find` finds."""
    for one in reversed(find(text)):
        text = f"{text[: one.start]}[{one.kind}]{text[one.end :]}"
    return text


def only_masks(text: str) -> bool:
    """Whether nothing but masks is left of a text: it tells nothing any more."""
    rest, count = MASK.subn("", text)
    return count > 0 and not any(sign.isalnum() for sign in rest)


def kinds_in(example: Example) -> list[str]:
    """What personal data a row holds, anywhere; each kind once."""
    return sorted({one.kind for text in _texts(example) for one in find(text)})


def masked_row(example: Example) -> Example:
    """The row with every text masked alike; a span that no longer fits its answer is dropped."""
    answers = tuple(dict.fromkeys(masked(answer) for answer in example.answers))
    provenance = example.provenance
    if answers[:1] != example.answers[:1]:
        provenance = provenance.model_copy(update={"span": None})
    return example.model_copy(
        update={
            "turns": tuple(
                Turn(role=turn.role, content=masked(turn.content)) for turn in example.turns
            ),
            "question": masked(example.question),
            "reasoning": masked(example.reasoning),
            "answers": answers,
            "options": tuple(masked(option) for option in example.options),
            "provenance": provenance,
        }
    )


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others, by Luhn's formula."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_iban(text: str) -> bool:
    """Whether it is an account number: its country's length, and remainder 1 modulo 97."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    turned = text[4:] + text[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1


def _texts(example: Example) -> Iterator[str]:
    yield example.question
    yield example.reasoning
    yield from example.answers
    yield from example.options
    for turn in example.turns:
        yield turn.content


def _mails(text: str) -> Iterator[Found]:
    for one in EMAIL.finditer(text):
        yield Found(one.start(), one.end(), "EMAIL")


def _accounts(text: str) -> Iterator[Found]:
    for one in IBAN.finditer(text):
        length = IBAN_LENGTHS.get(one[0][:2], 0)
        signs = [place for place, sign in enumerate(one[0]) if sign.isalnum()][:length]
        if length and is_iban("".join(one[0][place] for place in signs)):
            yield Found(one.start(), one.start() + signs[-1] + 1, "IBAN")


def _cards(text: str) -> Iterator[Found]:
    for one in CARD.finditer(text):
        digits = "".join(filter(str.isdecimal, one[0]))
        if digits.isascii() and luhn(digits):
            yield Found(one.start(), one.end(), "CARD")


def _hosts(text: str) -> Iterator[Found]:
    for one in IP.finditer(text):
        if one[0].count(":") == 2 and "::" not in one[0]:
            continue  # a time: 12:30:45
        try:
            ip_address(one[0])
        except ValueError:
            continue
        if any(map(str.isalnum, one[0])) and not VERSION.search(text[: one.start()]):
            yield Found(one.start(), one.end(), "IP")


def _phones(text: str) -> Iterator[Found]:
    for one in CALLED.finditer(text):
        yield Found(one.start(1), one.end(1), "PHONE")
    for one in PHONE.finditer(text):
        if not DATE.fullmatch(one[0]):
            yield Found(one.start(), one.end(), "PHONE")
