"""Measures what the gateway costs over the bare engine, and what both gain over one at a time.

    python benchmarks/serve.py [--model FILE.gguf] [--rounds 5] [--only gateway retrieval]

One llama.cpp process serves both sides: the requests go to its own address, or through the gateway,
in turn, each round with prompts that nobody has seen. Eight streams at once for the throughput, one
at a time for the first token. The reference server is `transformers.generate` behind a lock, one
request at a time, with the same model in float32 and eight clients.
Prints one JSON object a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from figures import figure
from serve_options import options_of

PARTS = ("gateway", "reference", "load", "retrieval")
"""The reference is compared with the gateway's figure, so it needs that part too."""
STREAMS = 8
TOKENS = 64
WORDS = (
    "The night warden locks the pump house at a quarter past ten and writes the time into the log. "
    "Valve seven is replaced after four hundred hours; the spare valves lie in locker twelve. "
)


@dataclass(frozen=True)
class Side:
    """Where requests go. key: the engine's own, which the gateway knows."""

    address: str
    key: str
    model: str
    process: int


def processor_seconds(process: int) -> float:
    """What a process has used so far, all cores summed (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def prompt(number: int) -> str:
    return f"Report {number}. {WORDS * 3}\n\nWhat does the warden of report {number} do, and why?"


async def one(client: Any, side: Side, number: int) -> tuple[float, int]:
    """Seconds to the first piece of text, and tokens written."""
    body = {
        "model": side.model,
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": TOKENS,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {side.key}"}
    began, first, tokens = time.perf_counter(), None, 0
    url = f"{side.address}/v1/chat/completions"
    async with client.stream("POST", url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if first is None and '"content":"' in line:
                first = time.perf_counter() - began
            if '"usage":{' in line.replace(": ", ":"):
                tokens = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    assert first is not None
    assert tokens
    return first, tokens


async def load(side: Side, first: int, count: int, at_once: int) -> tuple[float, list[float]]:
    """Tokens a second of all streams together, and the seconds to each first token."""
    places = asyncio.Semaphore(at_once)
    # A new connection each: llama.cpp's server does not keep what it says it keeps.
    limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=None, trust_env=False, limits=limits) as client:

        async def placed(number: int) -> tuple[float, int]:
            async with places:
                return await one(client, side, number)

        began = time.perf_counter()
        found = await asyncio.gather(*(placed(first + number) for number in range(count)))
        seconds = time.perf_counter() - began
    return sum(tokens for _, tokens in found) / seconds, [first for first, _ in found]


@contextmanager
def opened(gguf: Path, threads: int) -> Iterator[dict[str, Side]]:
    """A gateway in a process of its own, and the engine behind it."""
    command = [sys.executable, __file__, "--serve", str(gguf), "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield {name: Side(**fields) for name, fields in said.items()}
        process.stdin.close()


def gateway_and_engine(gguf: Path, threads: int, rounds: int, requests: int) -> float:
    """Both sides in turn; returns the gateway's tokens a second."""
    with opened(gguf, threads) as sides:
        rates: dict[str, list[float]] = {name: [] for name in sides}
        waits: dict[str, list[float]] = {name: [] for name in sides}
        used = dict.fromkeys(sides, 0.0)
        number = 0
        for turn in range(rounds + 1):
            for name in sorted(sides, reverse=bool(turn % 2)):
                before = {one: processor_seconds(sides[one].process) for one in sides}
                rate, _ = asyncio.run(load(sides[name], number, requests, STREAMS))
                if name == "gateway" and turn:
                    for one, was in before.items():
                        used[one] += processor_seconds(sides[one].process) - was
                number += requests
                _, firsts = asyncio.run(load(sides[name], number, STREAMS, 1))
                number += STREAMS
                if turn:  # the first warms both
                    rates[name].append(rate)
                    waits[name] += firsts
                print(f"{turn} {name}: {rate:.1f} tokens/s", file=sys.stderr)
    ratios = [a / b for a, b in zip(rates["gateway"], rates["engine"], strict=True)]
    how = (
        f"{rounds} rounds in turn, {requests} requests of {TOKENS} tokens, {STREAMS} streams, "
        f"{gguf.name}, one llama.cpp process"
    )
    share = statistics.median(ratios)
    figure("gateway_throughput_over_engine", round(share, 3), "ratio", 0.95, share >= 0.95, how)
    more = 1000 * (statistics.median(waits["gateway"]) - statistics.median(waits["engine"]))
    figure("gateway_first_token_added", round(more, 2), "ms", 5.0, more <= 5.0, how)
    spent = used["gateway"] / used["engine"]
    figure("gateway_processor_over_engine", round(spent, 4), "ratio", 0.05, spent <= 0.05, how)
    found = statistics.median(rates["gateway"])
    figure("gateway_throughput", round(found, 1), "tokens/s", None, True, how)
    return found


def one_at_a_time(reference: str, threads: int) -> float:
    """Tokens a second of `generate` behind a lock, with as many clients."""
    import torch

    from potstill.models.load import load_model, load_tokenizer

    torch.set_num_threads(threads)
    model, tokenizer = load_model(reference).eval(), load_tokenizer(reference)
    lock = threading.Lock()

    def answer(number: int) -> int:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt(number)}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with lock, torch.inference_mode():
            out = model.generate(
                **ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        return int(out.shape[1] - ids["input_ids"].shape[1])

    answer(10**6)
    began = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        tokens = sum(pool.map(answer, range(2 * 10**6, 2 * 10**6 + STREAMS)))
    return tokens / (time.perf_counter() - began)


def serve_here(gguf: Path, threads: int) -> None:
    """The gateway of this process until standard input ends; tells both addresses."""
    from potstill.serve.engine import EngineSizes, LocalEngine
    from potstill.serve.feedback import FeedbackStore
    from potstill.serve.gateway import Gateway, ServeConfig
    from potstill.serve.monitor import Log
    from potstill.serve.server import Server, listen

    config = ServeConfig(port=0, parallel=STREAMS, context_tokens=1024)
    engine = LocalEngine(gguf, EngineSizes(threads, STREAMS, 1024))
    with (
        tempfile.TemporaryDirectory() as folder,
        listen(config) as listening,
        Path(os.devnull).open("w") as nowhere,
    ):
        gateway = Gateway(
            name="student",
            config=config,
            engine=engine,
            folder=Path(folder),
            keys=None,
            ask=lambda passage, question: question,
            feedback=FeedbackStore(Path(folder) / "feedback.sqlite"),
            log=Log(nowhere),
        )
        server = Server(gateway)

        def started(address: str) -> None:
            upstream = engine.upstream
            sides = {
                "gateway": Side(address, "none", "student", os.getpid()),
                "engine": Side(
                    upstream.base_url, upstream.key or "", engine.model, engine.process_id or 0
                ),
            }
            print(json.dumps({name: vars(side) for name, side in sides.items()}), flush=True)
            threading.Thread(target=until_closed, daemon=True).start()

        def until_closed() -> None:
            sys.stdin.read()
            server.should_exit = True

        asyncio.run(server.run_at(listening, started))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    found = options_of(parser, serve_here)
    if found is None:
        return 0
    options, gguf = found
    if {"gateway", "reference"} & set(options.only):
        served = gateway_and_engine(gguf, options.threads, options.rounds, options.requests)
    if "reference" in options.only:
        alone = one_at_a_time(options.model, options.threads)
        gain = served / alone
        how = f"transformers.generate in float32 behind a lock, {STREAMS} clients: {alone:.1f}/s"
        figure("throughput_over_one_at_a_time", round(gain, 2), "ratio", 6.0, gain >= 6.0, how)
    failed = False
    for part in ("load", "retrieval"):
        if part in options.only:
            script = Path(__file__).with_name(f"serve_{part}.py")
            failed |= subprocess.run([sys.executable, str(script)], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
