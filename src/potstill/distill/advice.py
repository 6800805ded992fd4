"""What would suit this machine and these rows: method, student's size, signals, batch, and why.

In: a DistillConfig, the figures of ingestion and curation, the machine's memory and disk. Out:
`Advice`, a field each. Light. Knows nothing of how anything is trained; what its rules rest on is
said in docs/concepts/which-method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.machine import free_disk_bytes, memory_bytes
from potstill.core.stage import Advice, Figures
from potstill.distill.config import DistillConfig
from potstill.distill.launch import held_by
from potstill.distill.plan import (
    budget_tokens,
    hidden_width,
    is_streamed,
    memory_need,
    row_tokens,
    signal_bytes,
    student_parameters,
    teacher_parameters,
    teacher_shape,
)
from potstill.distill.residence import why_resident
from potstill.errors import ModelError
from potstill.models.vocabulary import is_of_byte_pairs

SHARE_OF_MEMORY = 0.8
"""Of physical memory; the rest is the system's and the caches'."""
SHARE_OF_DISK = 0.5
UNKNOWN_MEMORY = 8e9
MICRO_TOKENS = (4096, 2048, 1024, 512)
"""4,096 is where products on two cores reach what the machine can do."""
STEPS = 60
"""Fewer steps than this left the student short of what its tokens could teach it."""
MOST, HALF = 0.75, 0.5
"""Shares of the teacher that are proposed."""
FEWEST_WORDS = 49_152
"""As many as SmolLM2 has, the fewest that were measured to lose nothing; 24,576 lost 5 of 58 points
of F1 (docs/experiments.md)."""
TOKENS_FOR_HALF = 0.009
"""Row tokens a teacher's parameter from which half of it is worth having: 1.2 million for 135M."""


def advise(
    config: DistillConfig, earlier: Mapping[str, Figures], project: Path
) -> tuple[Advice, ...]:
    """One proposal a field, with its reason. Errors: LookupError if figures are missing."""
    room = SHARE_OF_MEMORY * (memory_bytes() or UNKNOWN_MEMORY) / held_by(config)
    teacher = teacher_parameters(config)
    tokens = budget_tokens(config, earlier)
    made = [_method(config), *_loading(config, room)]
    made.append(_signal(config, earlier, project, teacher))
    free = not config.assistants and config.student.size == "parameters_ratio"
    if config.student.model is None and free:
        ratio = HALF if tokens >= TOKENS_FOR_HALF * teacher else MOST
        made += [_size(config, ratio, tokens, teacher), *_words(config, ratio)]
    return (*made, *_batch(config, earlier, tokens, room), *_adapter(config, room))


def _method(config: DistillConfig) -> Advice:
    why = (
        "pulls wherever the teacher gives mass, on every token; the quickstart's figures are of it "
        "(docs/concepts/which-method.md)"
    )
    if config.divergence_parameter is not None:
        why += "; it takes no divergence_parameter"
    return _proposed("distill.divergence", config.divergence, "forward_kl", why)


def _size(config: DistillConfig, ratio: float, tokens: float, teacher: float) -> Advice:
    why = f"{tokens / 1e6:.1f} million row tokens are enough to teach half of the teacher"
    if ratio != HALF:
        enough = TOKENS_FOR_HALF * teacher / 1e6
        why = f"{tokens / 1e6:.2g} million row tokens; half of the teacher wants about "
        why += f"{enough:.1f} million"
    return _proposed("distill.student.parameters_ratio", config.student.ratio, ratio, why)


def _words(config: DistillConfig, ratio: float) -> list[Advice]:
    """Only where words alone bring a student to its size: they carry less than layers do."""
    try:
        shape = None if config.against_fewer_words else teacher_shape(config)
    except ModelError:  # of a family whose weights cannot be counted
        return []
    if shape is None:
        return []
    word = shape.hidden * (1 if shape.tied else 2)
    kept = int(shape.vocabulary - (1 - ratio) * shape.parameters / word) // 256 * 256
    if kept < FEWEST_WORDS or not is_of_byte_pairs(config.voices[0].teacher):
        return []
    why = (
        f"{shape.vocabulary * word / shape.parameters:.0%} of the teacher are its "
        f"{shape.vocabulary:,} words; with the most frequent ones alone it has the size above and "
        "all of its layers (docs/experiments.md#fewer-words)"
    )
    return [_proposed("distill.student.vocabulary", config.student.vocabulary, kept, why)]


def _signal(
    config: DistillConfig, earlier: Mapping[str, Figures], project: Path, teacher: float
) -> Advice:
    field, now = "distill.signal", config.signal
    if config.needs_live_teacher:
        return _proposed(field, now, "live", "a term looks into the teacher's layers")
    if config.on_policy.used:
        return _proposed(field, now, "live", "what the student will answer is in no file")
    rows = earlier["curate"]["train_rows"] * min(row_tokens(earlier), config.sequence_tokens)
    if budget_tokens(config, earlier) <= rows and config.teacher_loading != "streamed":
        return _proposed(field, now, "live", "each row is seen once, so a file would save nothing")
    free = SHARE_OF_DISK * free_disk_bytes(project)
    for kind, why in (
        ("hidden_bf16", "rows are seen again; the file is exact up to bf16 and 1.4 times as fast"),
        ("hidden_int8", "rows are seen again; the exact file would not fit on the disk"),
        ("top_k", "rows are seen again; hidden states would not fit on the disk"),
    ):
        if kind == "top_k" and config.alignment.used:
            continue
        form = config.model_copy(update={"signal": kind})
        size = signal_bytes(form, hidden_width(teacher)) * len(config.voices)
        if size * rows <= free:
            return _proposed(field, now, kind, f"{why} ({size * rows / 1e6:,.0f} MB)")
    if config.teacher_loading == "streamed":
        least = "sampled" if set(config.shares) == {"forward_kl"} else "top_k"
        least = "hidden_int8" if config.alignment.used else least
        return _proposed(field, now, least, "the disk is short of any file; this is the smallest")
    return _proposed(field, now, "live", "there is no disk for a file of signals")


def _loading(config: DistillConfig, room: float) -> list[Advice]:
    """Only where the training fits without the whole teacher beside it, and not with it."""
    smallest = max(MICRO_TOKENS[-1], config.sequence_tokens)
    needed, streamed = (
        memory_need(config.model_copy(update={"teacher_loading": how}), smallest)
        for how in ("resident", "streamed")
    )
    chosen = {"axes": "depth", "method": "influence", "refit": False, "steps": 1}
    able = config.model_copy(update={"student": config.student.model_copy(update=chosen)})
    if not streamed <= room < needed or why_resident(able, cuts=True) is not None:
        return []
    why = f"a teacher in memory and the training need about {needed / 1e9:.0f} of "
    other = [name for name, value in chosen.items() if getattr(config.student, name) != value]
    told = ", ".join(f"{name}: {chosen[name]}".replace("False", "false") for name in other)
    how = f" with student: {{{told}}}" if told and config.student.model is None else ""
    why += f"{room / 1e9:.0f} GB;{how} it is read layer by layer"
    now = "streamed" if is_streamed(config) else config.teacher_loading
    return [_proposed("distill.teacher_loading", now, "streamed", why)]


def _batch(
    config: DistillConfig, earlier: Mapping[str, Figures], tokens: float, room: float
) -> list[Advice]:
    longest = min(row_tokens(earlier), config.sequence_tokens)
    fitting = [micro for micro in MICRO_TOKENS if memory_need(config, micro) <= room]
    micro = max(fitting[0] if fitting else MICRO_TOKENS[-1], config.sequence_tokens)
    step = int(min(max(tokens / STEPS, 2 * longest, 500), 16_384)) // 100 * 100
    sizes = f"about {memory_need(config, micro) / 1e9:.1f} of {room / 1e9:.0f} GB"
    why = f"the largest of use that fits: {sizes}; it changes no gradient"
    if not fitting:
        why = f"the smallest, which does not fit either: {sizes}"
    fits = memory_need(config, config.micro_tokens) <= room
    return [
        _proposed("distill.micro_tokens", config.micro_tokens, micro, why, exact=not fits),
        _proposed(
            "distill.step_tokens",
            config.step_tokens,
            max(step, 100),
            f"about {STEPS} steps over {tokens / 1e6:.2g} million row tokens, not below two rows",
        ),
    ]


def _adapter(config: DistillConfig, room: float) -> list[Advice]:
    """Only where training all weights does not fit, and an adapter needs less."""
    smallest = max(MICRO_TOKENS[-1], config.sequence_tokens)
    kinds = ["lora", "qlora"] if config.adapter == "none" else [config.adapter, "lora", "qlora"]
    full, *needs = (
        memory_need(config.model_copy(update={"adapter": kind}), smallest)
        for kind in ["none", *kinds]
    )
    if full <= room or min(needs) == full:  # what the student is cut from may take the most
        return []
    kind = next((one for one, need in zip(kinds, needs, strict=True) if need <= room), None)
    size = f"all weights of {student_parameters(config) / 1e6:,.0f} million would need "
    size += f"{full / 1e9:.0f} GB"
    if kind is None:
        kind = kinds[needs.index(min(needs))]
        size += f", and this {min(needs) / 1e9:.0f}, which does not fit either"
    return [_proposed("distill.adapter", config.adapter, kind, size)]


def _proposed(field: str, now: Any, proposed: Any, why: str, *, exact: bool = False) -> Advice:
    """exact: a number of the recipe that is near the proposed one will not do."""
    numbers = isinstance(proposed, int) and isinstance(now, int)
    if numbers and not exact and 0.5 <= now / proposed <= 2:
        proposed = now  # near enough to be left alone
    chosen = now == "auto" and proposed in ("live", "hidden_bf16")  # what auto comes to
    return Advice(field, str(proposed), now == proposed or chosen, why)
