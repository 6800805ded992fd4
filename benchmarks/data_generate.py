"""Measures generation: against transformers one request after another, and against bare llama.cpp.

    python benchmarks/data_generate.py [--rounds 3] [--requests 28] [--one-by-one 2]

The teacher is SmolLM2-135M-Instruct, the requests are those of the quickstart's stage over its
handbook (one fact each, the reply forced into a JSON Schema). In each round the sides
take turns, in the other order each time:
- potstill: the whole stage, from chunks to written rows, each reply checked;
- bare: llama.cpp's own batch loop with its default settings and as many slots, given the same
  requests with the same schemas by threads that do nothing else;
- transformers: `generate` of the same model in float32, one request after another, forced into the
  same schemas by llguidance.
All count the tokens of replies by wall time. Loading is not counted, nor are the first replies of
each side: a stage asks for hundreds, and what all requests begin with is read once. Then replies
are spoiled in ways in which nothing is lost, and read. Prints one JSON object a line; all else to
standard error.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from figures import figure

from potstill.core.events import Emitter
from potstill.core.files import write_records
from potstill.core.machine import usable_cores
from potstill.core.stage import Artifact, Context, Draft
from potstill.generate import GenerateConfig
from potstill.generate.jobs import jobs_of
from potstill.generate.kinds.qa import Pair
from potstill.generate.repair import Shape, parse
from potstill.generate.run import run
from potstill.generate.unusable import UnusableError
from potstill.inference.base import Reply, Request, TextModel
from potstill.inference.open import open_model
from potstill.models.refs import gguf_file
from potstill.models.refs import parse as parse_reference
from potstill.recipe import Recipe
from potstill.records import Chunk, short_id

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
import malformed  # noqa: E402

SLOTS = 8
LONGEST = 96
"""Tokens of a reply."""


def note(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


class Noting:
    """A model that remembers what it said."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self.replies: list[Reply] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        for position, reply in self.model.complete(requests):
            self.replies.append(reply)
            yield position, reply

    def close(self) -> None:
        """The model stays open for the next round."""


def chunks(recipe: Recipe, wanted: int) -> list[Chunk]:
    """Pieces of the sample handbook, enough for so many requests."""
    from potstill.ingest.chunking import chunk_spans

    text = (
        Path(sys.modules["potstill"].__file__ or "").parent / "sample" / "handbook.md"
    ).read_text()
    spans = chunk_spans(text, lambda words: len(words) // 4, recipe.ingest.chunk_tokens)
    least = -(-wanted // recipe.generate.pairs_per_chunk)
    return [
        Chunk(
            id=short_id("bench", str(start)),
            document="bench",
            source="handbook.md",
            start=start,
            end=end,
            tokens=(end - start) // 4,
            text=text[start:end],
        )
        for start, end in spans[: least * 3 + 2]
    ]


def stage(config: GenerateConfig, pieces: list[Chunk], model: TextModel, seed: int) -> Noting:
    """The whole stage over these chunks; returns what was said."""
    noting = Noting(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest = folder / "ingest" / "data"
        write_records(ingest / "chunks.jsonl", pieces)
        write_records(ingest / "rows.jsonl", [])
        draft = Draft(folder / "draft")
        draft.data.mkdir(parents=True)
        draft.work.mkdir()
        context = Context(folder, folder / "cache", seed, usable_cores(), Emitter(None))
        inputs = {"ingest": Artifact("ingest", "k", folder / "ingest", "x")}
        run(config, inputs, draft, context, lambda: nullcontext(noting))  # type: ignore[arg-type]
        rows = sum(1 for _ in (draft.data / "examples.jsonl").open())
    note(f"  {len(noting.replies)} requests, {rows} rows")
    return noting


class Bare:
    """llama.cpp's server as it comes, in this process, asked by one thread a slot."""

    def __init__(self, gguf: Path, context_tokens: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel = SLOTS
        params.n_ctx = context_tokens * SLOTS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = usable_cores()
        params.enable_reasoning = 0
        params.ui = False
        params.verbosity = -1
        self.server = xllamacpp.Server(params)

    def tokens(self, requests: list[Request]) -> int:
        """Answer all; the number of tokens that were written."""
        waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        written: list[int] = []

        def work() -> None:
            while True:
                try:
                    request = waiting.get_nowait()
                except queue.Empty:
                    return
                reply = self.server.handle_chat_completions(body(request))
                reply = json.loads(reply) if isinstance(reply, str | bytes) else reply
                written.append(reply["usage"]["completion_tokens"])

        threads = [threading.Thread(target=work) for _ in range(SLOTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(written)


def body(request: Request) -> dict[str, Any]:
    """A request in llama.cpp's words."""
    return {
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "response_format": {"type": "json_schema", "json_schema": {"schema": request.schema}},
    }


class OneByOne:
    """transformers' generate, one request after another, forced into each schema by llguidance."""

    def __init__(self, reference: str) -> None:
        import torch
        from llguidance.hf import from_tokenizer

        from potstill.models.load import load_model, load_tokenizer

        torch.set_num_threads(usable_cores())
        self.tokenizer = load_tokenizer(reference)
        self.model = load_model(reference, torch.float32)
        self.rules = from_tokenizer(self.tokenizer)

    def tokens(self, requests: list[Request]) -> int:
        """Answer all; the number of tokens that were written."""
        import torch

        written = 0
        for request in requests:
            turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            asked = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            torch.manual_seed(request.seed)
            reply = self.model.generate(
                **asked,
                max_new_tokens=request.max_tokens,
                do_sample=True,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=0,
                logits_processor=[self._forced(request, asked["input_ids"].shape[1])],
                pad_token_id=self.tokenizer.eos_token_id,
            )
            new = reply[0, asked["input_ids"].shape[1] :]
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            if len(new) < request.max_tokens:
                json.loads(text)  # the peer is forced too, or the comparison means nothing
            written += len(new)
        return written

    def _forced(self, request: Request, start: int) -> Any:
        import llguidance
        import llguidance.torch as masks

        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(request.schema))
        matcher = llguidance.LLMatcher(self.rules, grammar)
        mask = masks.allocate_token_bitmask(1, self.rules.vocab_size)
        seen = start

        def process(ids: Any, scores: Any) -> Any:
            nonlocal seen
            for token in ids[0, seen:].tolist():
                matcher.consume_token(token)
            seen = ids.shape[1]
            masks.fill_next_token_bitmask(matcher, mask, 0)
            masks.apply_token_bitmask_inplace(scores, mask)
            return scores

        return process


def timed(work: Any) -> tuple[int, float]:
    """Tokens and seconds."""
    began = time.monotonic()
    tokens = work()
    return tokens, time.monotonic() - began


def throughput(arguments: argparse.Namespace) -> None:
    """The three sides in turn; median over the rounds of each round's ratio."""
    recipe = Recipe.load("quickstart")
    config = recipe.generate.model_copy(
        update={"attempts": 1, "max_tokens": LONGEST, "parallel": SLOTS}
    )
    gguf = gguf_file(parse_reference(config.teacher))
    assert gguf is not None
    pieces = chunks(recipe, arguments.requests * arguments.rounds)
    size = -(-arguments.requests // config.pairs_per_chunk)
    peer = OneByOne(config.teacher)
    bare = Bare(gguf, config.context_tokens)
    options = {"threads": usable_cores(), "parallel": SLOTS}
    rates: dict[str, list[float]] = {"potstill": [], "bare": [], "transformers": []}
    malformed_replies = replies = cut = 0
    with open_model(config.teacher, context_tokens=config.context_tokens, **options) as model:
        first, pieces = pieces[:2], pieces[2:]
        warm = [job.request(0, None) for job in jobs_of(config, 0, first, 99)][:SLOTS]
        for _ in model.complete(warm):
            pass
        bare.tokens(warm)
        peer.tokens(warm[:1])
        for number in range(arguments.rounds):
            own = pieces[number * size : (number + 1) * size]
            requests = [job.request(0, None) for job in jobs_of(config, 0, own, number)]

            def ours(own: list[Chunk] = own, seed: int = number) -> int:
                nonlocal malformed_replies, replies, cut
                asked = stage(config, own, model, seed)
                for reply in asked.replies:
                    replies += 1
                    cut += reply.finish_reason == "length"
                    whole = reply.finish_reason != "length"
                    malformed_replies += whole and not is_json(reply.text)
                return sum(reply.completion_tokens for reply in asked.replies)

            sides = [
                ("potstill", ours),
                ("bare", partial(bare.tokens, requests)),
                ("transformers", partial(peer.tokens, requests[: arguments.one_by_one])),
            ]
            for name, work in sides if number % 2 else reversed(sides):
                tokens, seconds = timed(work)
                rates[name].append(tokens / seconds)
            note("  " + ", ".join(f"{name} {one[-1]:.1f} tokens/s" for name, one in rates.items()))
    against = ratio(rates["potstill"], rates["transformers"])
    shown = {name: round(statistics.median(one), 1) for name, one in rates.items()}
    figure(
        "generation against transformers.generate one by one",
        round(against, 2),
        "times",
        4,
        against >= 4,
        f"tokens of replies a second, constrained, median of {arguments.rounds} rounds; {shown}; "
        f"transformers answered the first {arguments.one_by_one} of the same requests",
    )
    against = ratio(rates["potstill"], rates["bare"])
    figure(
        "generation against the bare llama.cpp batch loop",
        round(100 * against, 1),
        "%",
        85,
        against >= 0.85,
        f"the same {replies} requests with the same schemas, {SLOTS} slots, what they all begin "
        f"with read before; {shown}",
    )
    figure(
        "replies lost to malformed JSON, constrained",
        round(100 * malformed_replies / replies, 2),
        "%",
        0,
        malformed_replies == 0,
        f"{replies} replies of a 135M teacher read as strict JSON; {cut} were cut off at "
        f"{LONGEST} tokens and are not counted",
    )


def ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def repairs() -> None:
    """Replies that hold whole rows, spoiled in every way that is known here, and read."""
    words = (
        "the lamp of Skerry Point burns 46 litres a week, as Tove's log {says} : 3.5 bar".split()
    )
    lost = total = mended = 0
    for seed in range(6):
        for form, spoil in malformed.FORMS.items():
            for around, wrap in malformed.AROUND.items():
                rng = random.Random(f"{seed}/{form}/{around}")
                rows = [
                    {
                        "question": f"What is {' '.join(rng.choices(words, k=6))} {n}?",
                        "evidence": f"{' '.join(rng.choices(words, k=12))}. So it is.",
                        "reasoning": f"{' '.join(rng.choices(words, k=7))}.",
                        "answer": f"{' '.join(rng.choices(words, k=3))} {n}",
                    }
                    for n in range(rng.randint(1, 8))
                ]
                total += 1
                try:
                    parsed = parse(wrap(spoil(rows)), Shape(Pair, "pairs"))
                except UnusableError:
                    lost += 1
                    continue
                found = [one.answer for one in parsed.items]
                mended += parsed.mended
                lost += len(found) != len(rows) or any(
                    row["answer"] not in " ".join(answer.split())
                    for row, answer in zip(rows, found, strict=False)
                )
    share = 100 * lost / total
    figure(
        "recoverable malformed replies lost, without constrained decoding",
        round(share, 3),
        "%",
        1,
        share < 1,
        f"{total} replies in {len(malformed.FORMS)} forms and {len(malformed.AROUND)} wrappings, "
        f"{mended} of them mended; lost means that not every row came out",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=28)
    parser.add_argument("--one-by-one", type=int, default=2)
    repairs()
    throughput(parser.parse_args())


if __name__ == "__main__":
    main()
