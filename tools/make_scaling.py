"""Write the tables and pictures of docs/scaling.md from the cost model, so that they cannot
disagree.

    python tools/make_scaling.py            write them
    python tools/make_scaling.py --check    exit 1 if one is not what the model says

In: `potstill.costs` and its tables of data. Out: what stands between the marks of docs/scaling.md,
and docs/pictures/scaling-*.svg. Arithmetic alone; measures nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from scaling_pictures import EIGHT, PICTURES, SEEN, STEP, lesson, precision_of

from potstill.costs import (
    Training,
    accelerators,
    bound,
    cheapest,
    crossing,
    memory_of,
    parse_cluster,
    published,
    sources,
    step_of,
)
from potstill.costs.cluster import Cluster
from potstill.costs.signals import reading
from potstill.costs.training import OVERHEAD, fits, sent_of, whole_bytes
from potstill.display import duration, size
from potstill.distill.loading import LIBRARIES
from potstill.distill.plan import stored_bytes
from potstill.inference.endpoint import EndpointConfig
from potstill.models.adapter_config import Precision

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "scaling.md"
TEACHERS = ("Llama-2-7B", "Llama-2-13B", "CodeLlama-34B", "Llama-3-70B")
STUDENTS = ("SmolLM2-135M", "SmolLM2-1.7B", "Llama-2-7B")
SIZES = (1e6, 1e9, 1e11)
FILES = ("hidden_bf16", "hidden_int8", "top_k", "sampled")
DISK = 30e12
"""Bytes of a host's local disk that the tables take: eight drives of 3.84 TB."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def called(teacher: str) -> str:
    """Its name, and that it is in 4 bits."""
    return teacher + (", 4 bits" if precision_of(teacher) == "4bit" else "")


def power(count: float) -> str:
    """1e9 as people write it."""
    return f"10<sup>{round(math.log10(count))}</sup>"


def times(passes: float) -> str:
    """Of a crossing."""
    return "never" if math.isinf(passes) else f"{passes:.2f}"


def devices() -> str:
    """The table of accelerators."""
    rows = []
    for one in accelerators().values():
        kind = "bf16" if one.number_bytes == 2 else "fp32"
        source = f"{one.source} ({one.read})"
        rows.append(
            [f"`{one.name}`", f"{one.flops / 1e12:,.4g} ({kind})", size(one.memory)]
            + [f"{size(rate)}/s" for rate in (one.bandwidth, one.link, one.network, one.disk)]
            + [source]
        )
    header = ["name", "TFLOP/s, dense", "memory", "bandwidth", "link", "network", "disk", "source"]
    return table(header, rows)


def teachers() -> str:
    """What reading text with a teacher takes."""
    rows = []
    for name in TEACHERS:
        one = published()[name]
        ways: dict[str, tuple[str, Precision]] = {"": (EIGHT, "full")}
        if precision_of(name) == "4bit":
            ways |= {", 4 bits": (EIGHT, "4bit"), " ": ("8xB200", "full")}
        for said, (hardware, precision) in ways.items():
            cluster = parse_cluster(hardware)
            held = whole_bytes(one, precision, 2)
            how = "whole" if fits(held, cluster) else "by layers"
            cells = [name + said.rstrip(), f"`{hardware}`", size(held), how]
            for tokens in SIZES:
                phase = reading(one, tokens, SEEN, 0.0, cluster, precision)
                spent = bound([phase], cluster)
                cells.append(f"{duration(spent.seconds)}, {spent.binds}")
            rows.append(cells)
    return table(["teacher", "on", "bytes", "held", *(f"{power(n)} tokens" for n in SIZES)], rows)


def files() -> str:
    """Bytes of every kind of file."""
    rows = []
    for name in TEACHERS:
        found = sources(lesson("SmolLM2-1.7B", name), 1.0, parse_cluster(EIGHT))
        for kind in FILES:
            a_token = found[kind].file_bytes
            rows.append([name, f"`{kind}`", f"{a_token:,.0f}", *(size(a_token * n) for n in SIZES)])
    return table(["teacher", "signal", "bytes a token", *(power(n) for n in SIZES)], rows)


def crossings() -> str:
    """Where files begin to pay, and what their passes wait for."""
    cluster, rows = parse_cluster(EIGHT), []
    for student in STUDENTS:
        for teacher in TEACHERS:
            if published()[student].weights >= published()[teacher].weights:
                continue
            found = sources(lesson(student, teacher), 1e9, cluster)
            live = found["live"]
            cells = [duration(live.a_pass.seconds) if live.fits else "does not fit"]
            for kind in FILES:
                one = found[kind]
                point = times(crossing(live, one)) if live.fits else "only way"
                cells.append(f"{duration(one.a_pass.seconds)}, {one.a_pass.binds}; {point}")
            rows.append([student, called(teacher), *cells])
    return table(["student", "teacher", "live", *(f"`{kind}`" for kind in FILES)], rows)


def disks() -> str:
    """Bytes a second that a host must read so that no device waits for its file."""
    cluster, rows = parse_cluster(EIGHT), []
    for student in STUDENTS:
        for teacher in TEACHERS[:1] + TEACHERS[-1:]:
            if published()[student].weights >= published()[teacher].weights:
                continue
            found = sources(lesson(student, teacher), 1e9, cluster)
            cells = []
            for kind in FILES:
                one = found[kind]
                others = max(s for n, s in one.a_pass.by_resource.items() if n != "storage")
                cells.append(f"{size(one.file_bytes / others)}/s")
            rows.append([student, called(teacher), *cells])
    return table(["student", "teacher", *(f"`{kind}`" for kind in FILES)], rows)


def best() -> str:
    """The cheapest source for what fits on the disks."""
    cluster, rows = parse_cluster(EIGHT), []
    for tokens in SIZES:
        for teacher in TEACHERS[:1] + TEACHERS[-1:]:
            found = list(sources(lesson("SmolLM2-1.7B", teacher), tokens, cluster).values())
            cells = []
            for passes in (1, 3):
                exact = [one for one in found if one.kind in ("live", "hidden_bf16")]
                one = cheapest(exact, passes, DISK)
                any_ = cheapest(found, passes, DISK)
                cells += [
                    f"`{one.kind}`, {duration(one.seconds(passes))}",
                    f"`{any_.kind}`, {duration(any_.seconds(passes))}",
                ]
            rows.append([power(tokens), called(teacher), *cells])
    header = ["tokens", "teacher", "1 pass, exact", "1 pass, any", "3 passes, exact"]
    return table([*header, "3 passes, any"], rows)


def ranks() -> str:
    """Memory and messages of whole copies and of shards."""
    rows = []
    for student in STUDENTS:
        for teacher in TEACHERS[:1] + TEACHERS[-1:]:
            if published()[student].weights >= published()[teacher].weights:
                continue
            for held in ("live", "output"):
                one = replace(lesson(student, teacher), teacher_held=held)
                for name in (EIGHT, "8x8xH100"):
                    rows.append([student, called(teacher), held, f"`{name}`", *_ways(one, name)])
    header = ["student", "teacher", "held of it", "on", "DDP: memory", "sent a step"]
    return table([*header, "FSDP: memory", "sent a step"], rows)


def _ways(one: Training, name: str) -> Iterator[str]:
    cluster = parse_cluster(name)
    for sharded in (False, True):
        needed = OVERHEAD + sum(memory_of(one, cluster, sharded=sharded).values())
        yield f"{size(needed)}{'' if fits(needed, cluster) else ', too much'}"
        yield size(sent_of(one, cluster, sharded=sharded))


def binding() -> str:
    """What a step waits for, by hardware, size of the student, and signal."""
    rows = []
    for name in ("RTX-4090", "8xL40S", "8xA100-80GB", EIGHT, "8xB200", "2x8xL40S", "8x8xH100"):
        cluster = parse_cluster(name)
        cells = []
        for student in STUDENTS:
            for step in (1 << 15, STEP):
                cells.append(_waits(student, step, cluster))
        rows.append([f"`{name}`", *cells])
    header = [f"{student}, {step >> 10}k" for student in STUDENTS for step in (1 << 15, STEP)]
    return table(["cluster", *header], rows)


def _waits(student: str, step: int, cluster: Cluster) -> str:
    one = replace(lesson(student, "Llama-3-70B"), teacher_held="nothing", step_tokens=step)
    one = replace(one, teacher=None)
    for sharded in (False, True):
        needed = OVERHEAD + sum(memory_of(one, cluster, sharded=sharded).values())
        if fits(needed, cluster) and (cluster.ranks > 1 or not sharded):
            spent = bound([step_of(one, cluster, sharded=sharded)], cluster)
            speed = step / spent.seconds
            return f"{spent.binds}{' (FSDP)' if sharded else ''}, {speed / 1e3:,.0f}k/s"
    return "memory"


def requests() -> str:
    """What limits of requests and tokens a minute make of rows."""
    prompt, reply = 400.0, 55.0
    rows = []
    for limits in ((60, 40_000), (500, 200_000), (5000, 2_000_000), (None, None)):
        config = EndpointConfig(
            base_url="http://127.0.0.1:8000/v1",
            requests_per_minute=limits[0],
            tokens_per_minute=limits[1],
            concurrency=64,
        )
        cells = []
        for tokens in SIZES:
            asked = tokens / (prompt + reply)
            cells.append(duration(config.quote(asked, prompt * asked, reply * asked)["seconds"]))
        said = [f"{one:,}" if one else "no limit" for one in limits]
        rows.append([*said, *cells])
    return table(["requests a minute", "tokens a minute", *(power(n) for n in SIZES)], rows)


def checks() -> str:
    """Predictions beside what was measured on two cores; where is said in docs/experiments.md."""
    small, two = published()["SmolLM2-135M"], Cluster(accelerators()["cpu"])
    half = replace(small, layers=15)  # every second layer, 81.4M
    rows: list[tuple[str, float, float, str]] = []
    one = Training(small, micro_tokens=2048, step_tokens=2048)
    for checkpointed, measured in ((False, 1.03), (True, 0.48)):
        parts = memory_of(replace(one, checkpointed=checkpointed), two)
        copies = 2 * small.weights  # in bf16, which are there as long as the step
        foreseen = (parts["activations"] + parts["loss"] + copies) / 2048 / 1e6
        what = ", layers computed again" if checkpointed else ""
        rows.append((f"memory of a token in a step of 2,048{what}", foreseen, measured, "MB"))
    answers = 5.7 / 218
    engine = Training(
        half, small, "live", micro_tokens=1700, step_tokens=1700, seen=109, scored=answers
    )
    whole = (sum(memory_of(engine, two).values()) + LIBRARIES) / 1e9
    rows.append(("memory of the process, 81M taught by 135M, 1,700 tokens", whole, 2.8, "GB"))
    speed = 1700 / bound([step_of(engine, two)], two).seconds
    rows.append(("the same, rows that share nothing", speed, 421, "tokens/s"))
    taught = replace(engine, scored=1.0)
    live, file = (
        bound([step_of(replace(taught, teacher_held=held), two)], two).seconds
        for held in ("live", "nothing")
    )
    rows.append(("a file of words against the live teacher", live / file, 1.5, "times"))
    states = bound([step_of(replace(taught, teacher_held="output"), two)], two).seconds
    rows.append(("a file of states against the live teacher", live / states, 1.41, "times"))
    for kind, count, measured in (
        ("hidden_bf16", 0, 776),
        ("hidden_int8", 0, 563),
        ("top_k", 16, 48),
        ("top_k", 64, 172),
        ("sampled", 16, 27),
    ):
        foreseen = stored_bytes(kind, count, small.hidden)
        rows.append((f"`{kind}` {count or ''}".strip(), foreseen, measured, "bytes a token"))
    cells = [
        [what, f"{foreseen:.3g} {unit}", f"{measured:.3g} {unit}", f"{foreseen / measured:.2f}"]
        for what, foreseen, measured, unit in rows
    ]
    return table(["what", "foreseen", "measured", "foreseen / measured"], cells)


TABLES: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (checks, devices, teachers, files, crossings, disks, best, ranks, binding, requests)
}


def made() -> dict[Path, str]:
    """Every file as it should be."""
    text = PAGE.read_text("utf-8")
    for name, make in TABLES.items():
        begin, end = f"<!-- made: {name} -->", "<!-- end -->"
        assert text.count(begin) == 1, f"{PAGE} has no place for {name}"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    pictures = {DOCS / "pictures" / name: make() for name, make in PICTURES.items()}
    return {PAGE: text, **pictures}


def main() -> int:
    """Write, or compare."""
    stale = []
    for path, text in made().items():
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text("utf-8") != text:
                stale.append(path)
        else:
            path.write_text(text, "utf-8")
    for path in stale:
        print(f"{path} is not what the cost model says; run: python tools/make_scaling.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
