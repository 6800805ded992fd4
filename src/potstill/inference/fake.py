"""A model without weights: its reply is a function of the request, and follows the schema.

In: requests. Out: replies at once. Made for tests and for dry runs of a whole recipe on any
machine (`backend: fake`): asked for a question about a passage, it writes one whose words stand in
the passage and whose answer is one that the schema allows. Knows no language.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from potstill.inference.base import Reply, Request

WORD = re.compile(r"[A-Za-z0-9]+")
TOKEN = re.compile(r"\w+|[^\w\s]")
OPENINGS = ("What", "Which", "How many", "How", "When", "Where", "Who", "How much", "How long")
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
        source = request.messages[-1].content.strip().splitlines()[-1]
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
    words = WORD.findall(source)
    if "enum" in fields["answer"]:
        answer = _follow(fields["answer"], source, seed)
    else:
        answer = words[seed % len(words)] if words else "word"
    taken = {word.lower() for word in WORD.findall(answer)}
    asked = [word for word in words if word.lower() not in taken]
    start = seed % max(1, len(asked) - 3)
    question = _question(asked[start:] + asked[:start], fields["question"].get("pattern", ""))
    made = {"question": question, "answer": answer}
    return {
        name: made[name] if name in made else _reason(answer, source, field)
        for name, field in fields.items()
    }


def _question(words: list[str], pattern: str) -> str:
    """An opening and some words, in the pattern's form if there is one."""
    for count in range(min(6, len(words)), 0, -1):
        for opening in OPENINGS:
            question = f"{opening} {' '.join(words[:count])}?"
            if re.search(pattern, question):
                return question
    return f"What {' '.join(words[:6])}?"


def _reason(answer: str, source: str, field: dict[str, Any]) -> str:
    return f"{answer}: {source}"[: field.get("maxLength", 200)]
