"""A teacher that reads the passage and writes good rows of every kind, as the schema asks.

In: requests. Out: replies made of the passage's own sentences. Not a test; the tests of all kinds
share it. `spoil` changes a reply's text before it is handed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from potstill.generate.grounding import sentences
from potstill.inference.base import Reply, Request
from potstill.inference.fake import FakeModel

Spoil = Callable[[str, Request], str]
FIGURE = re.compile(r"\b\d+ [a-z]+")


class Scribe(FakeModel):
    """`verdict`: what it says as a judge. Remembers what it was asked."""

    def __init__(
        self, spoil: Spoil = lambda text, request: text, verdict: str = "yes", delay: float = 0
    ) -> None:
        super().__init__(delay=delay)
        self.spoil, self.verdict = spoil, verdict
        self.asked: list[Request] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        for position, request in enumerate(requests):
            self.asked.append(request)
            text = self.spoil(json.dumps(self.written(request), ensure_ascii=False), request)
            yield position, Reply(text, "stop", 100, len(text) // 4, 0.0)

    def written(self, request: Request) -> Any:
        assert request.schema is not None
        fields = request.schema["properties"]
        if "supported" in fields:
            return {"reason": "I looked.", "supported": self.verdict}
        asked = [turn.content for turn in request.messages if "Passage: " in turn.content]
        if "question" in fields:
            return {"question": self.in_other_words(request)}
        passage = asked[-1].rpartition("Passage: ")[2]
        if "summary" in fields:
            return {"summary": " ".join(re.findall(r"\w+", passage)[:20][::-1])}
        (name,) = fields
        rows = [self.row(name, one, request.schema) for one in facts(passage)]
        return {name: rows[: fields[name]["maxItems"]]}

    def in_other_words(self, request: Request) -> str:
        asked = next(turn for turn in request.messages if turn.role == "user").content
        question = asked.partition("Question: ")[2].partition("\n")[0]
        start = "Please say" if "exact" in request.messages[1].content else "Tell me"
        return f"{start}: {question[:1].lower()}{question[1:]}"

    def row(self, name: str, fact: tuple[str, str], schema: dict[str, Any]) -> dict[str, Any]:
        sentence, answer = fact
        rest = sentence.replace(answer, "what", 1).rstrip(".")
        good = {
            "question": f"It says {rest}, so what is it?",
            "evidence": sentence,
            "reasoning": f"The sentence names {answer}.",
            "answer": answer,
            "distractors": ["1 lamp", "2 lamps", "3 lamps"],
            "sentence": sentence.replace(answer, "____", 1),
            "missing": "the colour of its paint",
        }
        if "missing" in schema["properties"][name]["items"]["properties"]:
            good["question"] = f"Which colour has the paint of: {rest}?"
        return {field: good[field] for field in schema["properties"][name]["items"]["properties"]}


def facts(passage: str) -> list[tuple[str, str]]:
    """Sentences with a figure, and the figure with what it counts."""
    found = []
    for span in sentences(passage):
        sentence = " ".join(passage[span.start : span.end].split())
        if figure := FIGURE.search(sentence):
            found.append((sentence, figure[0]))
    return found
