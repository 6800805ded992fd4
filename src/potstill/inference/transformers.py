"""PyTorch models through transformers: batches with left padding, one seed a request; on a GPU, if
there is one, in bf16.

In: a model reference and requests. Out: replies. A schema is asked for in words and the JSON is
cut out of the reply: nothing here forces it, so some replies do not parse and are asked again by
whoever checks them. llama.cpp (`llamacpp.py`) forces it and is faster on CPUs.
Knows nothing of documents.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from potstill.inference.base import Reply, Request
from potstill.models.chat import encode_example
from potstill.models.device import device_here
from potstill.models.load import load_model, load_tokenizer
from potstill.models.sampling import Draw, end_tokens
from potstill.records import Turn

NO_LIMIT = 1 << 30


class TransformersModel:
    """A PyTorch causal language model. parallel: requests in a batch. Errors: ModelError."""

    def __init__(self, reference: str, *, threads: int, parallel: int, context_tokens: int) -> None:
        torch.set_num_threads(threads)
        self.parallel = parallel
        self.context_tokens = context_tokens
        self._tokenizer: Any = load_tokenizer(reference)
        device = device_here()
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._model: Any = load_model(reference, dtype).to(device)

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Batches of `parallel` requests in their order; a batch ends with its longest reply."""
        source = iter(enumerate(requests))
        while batch := list(islice(source, self.parallel)):
            prompts = [self._prompt_ids(request) for _, request in batch]
            fitting = []
            for (position, request), ids in zip(batch, prompts, strict=True):
                if len(ids) + request.max_tokens > self.context_tokens:
                    yield position, _too_long(len(ids), request.max_tokens, self.context_tokens)
                else:
                    fitting.append((position, request, ids))
            if fitting:
                positions, asked, ids_of = zip(*fitting, strict=True)
                replies = self._generate(asked, ids_of)
                yield from zip(positions, replies, strict=True)

    def stream(self, request: Request) -> Iterator[str]:
        """Pieces of one reply as they are decoded."""
        ids = torch.tensor([self._prompt_ids(request)])
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        ends = _Ends(self._tokenizer, [request], ids.shape[1])
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self._call(ids, torch.ones_like(ids), [request], ends, streamer)
            except BaseException as error:
                failed.append(error)
                streamer.end()

        thread = threading.Thread(target=work, name="stream", daemon=True)
        thread.start()
        try:
            yield from streamer
            if failed:
                raise failed[0]
        finally:
            ends.stop_all = True
            thread.join()

    def count_tokens(self, text: str) -> int:
        """Length in tokens, without special tokens."""
        return len(self.token_ids(text))

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """The tokenizer's ids."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def close(self) -> None:
        """Free the model."""
        self._model = None

    def _prompt_ids(self, request: Request) -> list[int]:
        messages = list(request.messages)
        if request.schema is not None:
            last = messages[-1]
            asked = f"{last.content}\n\n{_schema_in_words(request.schema)}"
            messages[-1] = last.model_copy(update={"content": asked})
        # Any answer will do: what is wanted is the prompt in front of it, as training renders it.
        whole = [*messages, Turn(role="assistant", content="Yes.")]
        return encode_example(self._tokenizer, whole, NO_LIMIT).prompt

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[Reply]:
        began = time.monotonic()
        width = max(map(len, prompts))
        pad = self._pad
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        ends = _Ends(self._tokenizer, requests, width)
        whole = self._call(ids, mask, requests, ends, None)
        seconds = time.monotonic() - began
        replies = []
        for row, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            new = whole[row, width:].tolist()[: request.max_tokens]
            stopped = next((n for n, token in enumerate(new) if token in self._eos), None)
            new = new if stopped is None else new[:stopped]
            text = self._tokenizer.decode(new, skip_special_tokens=True)
            text, complete = _cut(text, request)
            done = complete or stopped is not None
            replies.append(
                Reply(text, "stop" if done else "length", len(prompt), len(new), seconds)
            )
        return replies

    def _call(
        self,
        ids: Tensor,
        mask: Tensor,
        requests: Sequence[Request],
        ends: _Ends,
        streamer: TextIteratorStreamer | None,
    ) -> Tensor:
        """generate(), greedy over noise that is drawn by each request's own seed."""
        whole: Tensor = self._model.generate(
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            max_new_tokens=max(request.max_tokens for request in requests),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._pad,
            logits_processor=LogitsProcessorList([_SeededDraw(requests)]),
            stopping_criteria=StoppingCriteriaList([ends]),
            streamer=streamer,
        )
        return whole

    @property
    def _eos(self) -> frozenset[int]:
        return end_tokens(self._model, self._tokenizer)

    @property
    def _pad(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(pad if pad is not None else next(iter(self._eos), 0))


class _SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Each row's draws by its request's seed; greedy search over what it returns samples."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._draws = [Draw(one.seed, one.temperature, one.top_p) for one in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (rows, vocabulary)."""
        rows = zip(scores.float(), self._draws, strict=True)
        return torch.stack([draw.noisy(row) for row, draw in rows])


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """A row is done at its own token limit, stop text, or when its JSON object is whole."""

    def __init__(self, tokenizer: Any, requests: Sequence[Request], width: int) -> None:
        self._tokenizer, self._requests, self._width = tokenizer, requests, width
        self.stop_all = False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """input_ids: (rows, tokens so far); returns (rows,) booleans."""
        written = input_ids.shape[1] - self._width
        done = []
        for row, request in zip(input_ids, self._requests, strict=True):
            ended = self.stop_all or written >= request.max_tokens
            if not ended and (request.stop or request.schema is not None):
                text = self._tokenizer.decode(row[self._width :], skip_special_tokens=True)
                ended = _cut(text, request)[1]
            done.append(ended)
        return torch.tensor(done, device=input_ids.device)


def _cut(text: str, request: Request) -> tuple[str, bool]:
    """The reply without what follows its end, and whether that end was there."""
    found = [at for word in request.stop if (at := text.find(word)) >= 0]
    if found:
        return text[: min(found)], True
    if request.schema is None:
        return text, False
    start = text.find("{")
    try:
        _, end = json.JSONDecoder().raw_decode(text, max(start, 0))
    except ValueError:
        return text, False
    return text[start:end], start >= 0


def _schema_in_words(schema: dict[str, Any]) -> str:
    names = ", ".join(f'"{name}"' for name in schema.get("properties", {}))
    return f"Answer with one JSON object that has the keys {names}, and nothing else."


def _too_long(prompt: int, reply: int, context: int) -> Reply:
    words = f"the prompt has {prompt} tokens; with {reply} for the reply it exceeds {context}"
    return Reply(words, "error", prompt, 0, 0.0)
