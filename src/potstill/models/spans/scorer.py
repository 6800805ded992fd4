"""How probable a language model takes each span of a passage to be its answer.

In: a causal model, its tokenizer, rows. Out: `Marks`. Knows nothing of students or of training.

    P(span | prompt) = product of P(token | prompt, tokens before it) * P(end of turn | all of them)

The prompt is the row's own, as the model is asked everywhere. Not all spans can be tried: of all
places where a word begins, those `starts` whose first token is the most probable, and the row's own
span. From each the next `longest_words` words are read once, in one batch, from the prompt's
attention cache: every end on the way is a span. A model that learned to decline also says how
probable its words for that are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from potstill.errors import ModelError
from potstill.models.chat import encode_example
from potstill.models.output import output_layer
from potstill.models.prefix_reader import Plan, PrefixReader
from potstill.models.spans.marks import Marks
from potstill.models.spans.rows import SpanRow

BEGINNING = re.compile(r"(?<!\w)\S")
"""Where an answer may begin: not inside a word."""
WORD = re.compile(r"\S+")
NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Prompted:
    """A row's prompt, and how its answer is written after it: `lead` stands before its words."""

    row: SpanRow
    prompt: list[int]
    lead: str


@dataclass(frozen=True)
class Continuation:
    """What is read from one start on. `ends`: the passage's character after each token, or None
    where no span ends."""

    start: int
    ids: list[int]
    ends: list[int | None]


class SpanScorer:
    """A language model as a teacher of spans."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        starts: int,
        longest_words: int,
        refusal: str | None = None,
    ) -> None:
        """refusal: its words for no answer, if rows have taught it any. Errors: ModelError for a
        model without an end of turn."""
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The teacher's tokenizer has no end token, so no span of it ever ends.",
                "Use another teacher, or distill.signal.source: none.",
            )
        self.model, self.tokenizer = model, tokenizer
        self.starts, self.longest_words, self.refusal = starts, longest_words, refusal
        self.output = output_layer(model).detached()
        self.end = int(tokenizer.eos_token_id)
        self.window = getattr(model.config, "max_position_embeddings", None) or NO_LIMIT
        self._firsts: dict[str, int] = {}

    @torch.inference_mode()
    def marks(
        self, rows: Sequence[SpanRow], tell: Callable[[int], None] = lambda done: None
    ) -> Iterator[Marks]:
        """Of each row, in the order in which they share most; tell: hears how many are done.

        A row whose prompt the model cannot read, or whose answer it would not write as its own
        words, has no spans: nothing is taught on it.
        """
        prompted = [self.prompted(row) for row in rows]
        usable = [one for one in prompted if one is not None]
        done = 0
        for row, one in zip(rows, prompted, strict=True):
            if one is None:
                done += 1
                yield Marks(id=row.id)
        reader = PrefixReader(self.model)
        for place, shared in Plan.of([one.prompt for one in usable]):
            one = usable[place]
            hidden = reader.read(one.prompt, shared)
            yield self._of_row(one, hidden[-1:], reader)
            done += 1
            tell(done)

    def prompted(self, row: SpanRow) -> Prompted | None:
        """The row's prompt, and its answer's form. Errors: ModelError of a template."""
        turns = row.example.turns
        encoded = encode_example(self.tokenizer, turns, NO_LIMIT)
        answer = turns[-1].content.strip()
        for lead in ("", " "):
            if [*self._ids(lead + answer), self.end] == encoded.answer:
                longest = self.longest_words * 8 + 2
                fits = len(encoded.prompt) + longest <= self.window
                return Prompted(row, encoded.prompt, lead) if fits else None
        return None

    def continuations(self, one: Prompted, log_p: Tensor) -> list[Continuation]:
        """From the most probable starts, and from the row's own. log_p: [V] after the prompt."""
        passage = one.row.passage
        begins = [found.start() for found in BEGINNING.finditer(passage)]
        firsts = [self._first(one.lead, passage, start) for start in begins]
        ranked = sorted(range(len(begins)), key=lambda n: (-float(log_p[firsts[n]]), n))
        chosen = [begins[n] for n in ranked[: self.starts]]
        if one.row.start is not None and one.row.start not in chosen:
            chosen.append(one.row.start)
        return [self._continuation(one.lead, passage, start) for start in chosen]

    def _of_row(self, one: Prompted, hidden: Tensor, reader: PrefixReader) -> Marks:
        first = self.output.log_probabilities(hidden)[0]
        tried = self.continuations(one, first)
        sequences = [found.ids for found in tried]
        if self.refusal is not None:
            sequences = [*sequences, self._ids(one.lead + self.refusal)]
        totals = self._totals(sequences, first, reader, len(one.prompt))
        spans: dict[tuple[int, int], float] = {}
        for found, total in zip(tried, totals, strict=False):
            for end, value in zip(found.ends, total, strict=True):
                if end is not None:
                    spans[found.start, end] = value
        none = totals[-1][-1] if self.refusal is not None else None
        return Marks(id=one.row.id, spans=tuple(spans), log_p=tuple(spans.values()), none=none)

    def _totals(
        self, sequences: Sequence[list[int]], first: Tensor, reader: PrefixReader, length: int
    ) -> list[list[float]]:
        """Of each beginning of each sequence, log P of its tokens and of the end after them."""
        longest = max(map(len, sequences))
        device = first.device
        ids = torch.full((len(sequences), longest), self.end, device=device)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        cache = DynamicCache(
            [
                (keys.expand(len(sequences), -1, -1, -1), values.expand(len(sequences), -1, -1, -1))
                for keys, values in reader.prefix(length)
            ]
        )
        hidden = self.model.base_model(
            input_ids=ids,
            position_ids=torch.arange(length, length + longest, device=device).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        found = []
        for row, sequence in enumerate(sequences):
            after = self.output.log_probabilities(hidden[row, : len(sequence)])
            before = torch.cat([first[None], after[:-1]])
            steps = before.gather(1, ids[row, : len(sequence), None])[:, 0].double().cumsum(0)
            found.append((steps + after[:, self.end].double()).tolist())
        return found

    def _continuation(self, lead: str, passage: str, start: int) -> Continuation:
        words = list(WORD.finditer(passage, start))[: self.longest_words]
        text = lead + passage[start : words[-1].end()]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        stops = [start + end - len(lead) for _, end in encoded.offset_mapping]
        ends: list[int | None] = [
            end if end > start and _is_border(passage, end) and end != after else None
            # Signs of several bytes have several tokens that end at the same character.
            for end, after in zip(stops, [*stops[1:], -1], strict=True)
        ]
        return Continuation(start, list(encoded.input_ids), ends)

    def _first(self, lead: str, passage: str, start: int) -> int:
        """The first token of an answer that begins there; white space ends what decides it."""
        found = WORD.match(passage, start)
        assert found is not None
        word = lead + found[0]
        if word not in self._firsts:
            self._firsts[word] = self._ids(word)[0]
        return self._firsts[word]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def _is_border(passage: str, at: int) -> bool:
    """Whether a span may end before that character: after no white space, and in no word."""
    if passage[at - 1].isspace():
        return False
    return at == len(passage) or not (passage[at - 1].isalnum() and passage[at].isalnum())


def refusal_of(rows: Sequence[SpanRow]) -> str | None:
    """The rows' words for no answer; None if none of them declines."""
    said = [row.example.turns[-1].content.strip() for row in rows if row.start is None]
    return max(set(said), key=lambda one: (said.count(one), one)) if said else None
