"""A model without weights: its reply is a function of the request, and follows the schema.

In: requests. Out: replies at once. Made for tests and for dry runs of a whole recipe on any
machine (`backend: fake`): asked for a question about a passage, it writes one whose words stand in
the passage and whose answer is one that the schema allows. Knows no language.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from re import _parser as sre_parse  # type: ignore[attr-defined]
from string import printable
from typing import Any

from potstill.inference.base import Reply, Request

WORD = re.compile(r"[A-Za-z0-9]+")
TOKEN = re.compile(r"\w+|[^\w\s]")
LABEL = re.compile(r"^\w+: ")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
GARBAGE = "no no no"


class FakeModel:
    """Answers deterministically. garbage: answers nothing usable. delay: seconds a reply takes."""

    def __init__(self, *, garbage: bool = False, delay: float = 0.0) -> None:
        self.garbage = garbage
        self.delay = delay

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Answer in order."""
        for position, request in enumerate(requests):
            if self.delay:
                time.sleep(self.delay)
            text = self._text(request)
            tokens = self.count_tokens(text)
            cut = tokens > request.max_tokens
            if cut:
                text = text[: [m.end() for m in TOKEN.finditer(text)][request.max_tokens - 1]]
            yield (
                position,
                Reply(
                    text,
                    "length" if cut else "stop",
                    self.count_tokens(request.prompt_text),
                    min(tokens, request.max_tokens),
                    0.0,
                ),
            )

    def stream(self, request: Request) -> Iterator[str]:
        """The reply, a word at a time."""
        for _, reply in self.complete([request]):
            yield from re.findall(r"\S+\s*", reply.text)

    def count_tokens(self, text: str) -> int:
        """Words and signs."""
        return len(TOKEN.findall(text))

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """One id a word or sign, below 2^16; 0 is the start token."""
        ids = [1 + int.from_bytes(t.encode()[:4], "big") % 65535 for t in TOKEN.findall(text)]
        return [0, *ids] if special else ids

    def close(self) -> None:
        """Nothing to give back."""

    def _text(self, request: Request) -> str:
        if self.garbage:
            return GARBAGE
        # What is asked stands at a prompt's end; "Sentence:" and the like are no part of it.
        lines = request.messages[-1].content.strip().splitlines()[-2:]
        source = " ".join(LABEL.sub("", line) for line in lines)
        if request.schema is None:
            return " ".join(WORD.findall(source)[: request.max_tokens]) or "Nothing."
        return json.dumps(_follow(request.schema, source, request.seed), ensure_ascii=False)


def _follow(schema: dict[str, Any], source: str, seed: int) -> Any:
    """A value that the schema allows, made of words of `source`."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][seed % len(schema["enum"])]
    kind = schema.get("type", "string")
    if kind == "object":
        fields = schema.get("properties", {})
        if {"question", "answer"} <= fields.keys():
            return _pair(fields, source, seed)
        return {name: _follow(field, source, seed) for name, field in fields.items()}
    if kind == "array":
        return [
            _follow(schema["items"], source, seed + n) for n in range(schema.get("minItems", 1))
        ]
    if kind in {"integer", "number"}:
        return schema.get("minimum", seed % 10)
    if kind == "boolean":
        return seed % 2 == 0
    text = " ".join(WORD.findall(source)) or "word"
    return text[: schema.get("maxLength", 200)].ljust(schema.get("minLength", 0), "x")


def _pair(fields: dict[str, Any], source: str, seed: int) -> dict[str, Any]:
    """A question about `source` whose answer stands in it; the fields in the schema's order."""
    words = WORD.findall(source) or ["word"]
    if "enum" in fields["answer"]:
        answer = _follow(fields["answer"], source, seed)
    else:
        answer = words[seed % len(words)]
    pattern = fields["question"].get("pattern")
    long = {word.lower() for word in words if len(word) > 3}
    about = long - {word.lower() for word in WORD.findall(answer)}
    if pattern is None:
        asked = [word for word in words if word.lower() in about]
        question = f"What {' '.join(asked[seed % 3 :][:6])}?"
    else:
        question = _write(_parsed(pattern), random.Random(seed), about)
    made = {"question": question, "answer": answer}
    return {
        name: made[name] if name in made else f"{answer}: {source}"[: field.get("maxLength", 200)]
        for name, field in fields.items()
    }


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> Any:
    return sre_parse.parse(pattern)


def _write(parts: Any, random: random.Random, wanted: set[str]) -> str:
    """A text that a regular expression matches; each word of `wanted` that fits is used once."""
    text = ""
    for kind, value in parts:
        if kind is sre_parse.LITERAL:
            text += chr(value)
        elif kind is sre_parse.BRANCH:
            apt = [part for part in value[1] if _literal(part).lower() in wanted]
            chosen = random.choice(apt or value[1])
            wanted = wanted - {_literal(chosen).lower()}
            text += _write(chosen, random, wanted)
        elif kind is sre_parse.SUBPATTERN:
            text += _write(value[-1], random, wanted)
        elif kind is sre_parse.MAX_REPEAT:
            low, high, part = value
            if low > 1 and part[0][0] is sre_parse.IN and part[0][1][0][0] is sre_parse.NEGATE:
                text += _free(wanted, low, int(high))
                continue
            for _ in range(random.randint(low, min(int(high), low + 5))):
                written = _write(part, random, wanted)
                wanted = wanted - {written.strip().lower()}
                text += written
        elif kind is sre_parse.IN:
            letters = [letter for letter in LETTERS if _in(letter, value)]
            text += random.choice(letters or [one for one in printable if _in(one, value)])
        elif kind is not sre_parse.AT:
            text += random.choice(LETTERS)
    return text


def _free(wanted: set[str], low: int, high: int) -> str:
    """Words where a pattern leaves the words open, `low` to `high` characters."""
    text = " ".join(sorted(wanted))[:high].strip()
    return text if len(text) >= low else text.ljust(low, "o")


def _literal(part: Any) -> str:
    """The text of a part that is only letters, else nothing."""
    plain = all(kind is sre_parse.LITERAL for kind, _ in part)
    return "".join(chr(value) for _, value in part) if plain else ""


def _in(letter: str, members: Any) -> bool:
    """Whether a character class holds a letter."""
    negated = members[0][0] is sre_parse.NEGATE
    return bool(any(_member(letter, member) for member in members[negated:]) != negated)


def _member(letter: str, member: Any) -> bool:
    kind, value = member
    if kind is sre_parse.LITERAL:
        return bool(ord(letter) == value)
    if kind is sre_parse.RANGE:
        return bool(value[0] <= ord(letter) <= value[1])
    return letter.isalnum()
