"""How rows stand in batches: packed or in buckets, beginnings shared or not, families.

In: both models, rows, what is wanted. Out: the rows of training and of validation with their
families, in the first layout in which all models say what they say of single rows. Knows nothing of
steps or losses.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from potstill.core.events import Emitter
from potstill.distill import attention, probe, signals
from potstill.distill.batches import Row, RowSet
from potstill.distill.config import DistillConfig
from potstill.distill.families import Family, group
from potstill.distill.panel import Panel
from potstill.distill.teacher_rows import TeacherRows
from potstill.errors import TrainingError


def lay_out(
    config: DistillConfig,
    teacher: signals.LiveTeacher,
    student: Any,
    some_rows: tuple[Sequence[Row], Sequence[Row]],
    aligned: tuple[TeacherRows, TeacherRows] | None,
    panel: Panel | None,
    events: Emitter,
) -> tuple[RowSet, RowSet]:
    """The first layout of those wanted in which all models say the same as for single rows.

    some_rows: those of training and of validation, in the student's tokens.
    """
    rows = some_rows[0]

    def models() -> Iterable[tuple[Any, Sequence[Row]]]:
        with teacher.shortened() as model:
            yield model, rows if aligned is None else aligned[0].rows
        yield student, rows
        yield from ((one.model, rows) for one in panel.others(teacher)) if panel else ()

    for packed, share in _layouts(config):
        if all(_can(model, read, packed, share) for model, read in models()):
            break
    else:
        raise TrainingError(
            "These models do not say the same for packed rows as for single ones.",
            "Use distill.batching: auto, and no attention maps.",
        )
    if (packed, share) != next(_layouts(config)):
        events.warning(
            "The models do not say the same for "
            f"{'packed rows' if not packed else 'shared beginnings'} as for single rows, so "
            f"{'rows are padded' if not packed else 'nothing is shared'}: slower, equal in result."
        )
    found = []
    for some, partner in zip(some_rows, aligned or (None, None), strict=True):
        families = RowSet.apart(some).families
        if share:
            families = _families(some, panel.kinds(some) if panel else [None] * len(some), config)
        found.append(RowSet(some, families, packed, partner))
    return found[0], found[1]


def _families(
    rows: Sequence[Row], kinds: Sequence[Hashable], config: DistillConfig
) -> list[Family]:
    """Rows that share a beginning and are of one kind, together."""
    families: list[Family] = []
    for kind in dict.fromkeys(kinds):
        numbers = [number for number, own in enumerate(kinds) if own == kind]
        ids = [rows[number].ids for number in numbers]
        found = group(ids, computed=config.micro_tokens, in_full=config.step_tokens)
        families += [tuple(numbers[one] for one in family) for family in found]
    return families


def _layouts(config: DistillConfig) -> Iterator[tuple[bool, bool]]:
    """(packed, beginnings are shared), the preferred first."""
    # Dropout would be drawn once for all that share a token.
    drops = config.adapter != "none" and config.lora.dropout > 0
    share = config.share_beginnings and not drops
    both = {"auto": (True, False), "packed": (True,), "buckets": (False,)}[config.batching]
    for packed in (True,) if config.attention.used else both:
        if share:
            yield packed, True
        yield packed, False


def _can(model: Any, rows: Sequence[Row], packed: bool, share: bool) -> bool:
    """Whether the model's states in this layout are those of single rows."""
    attention.unuse(model)
    if not packed and not share:
        return True  # right padding under causal attention
    return probe.says_the_same(model, rows, packed=packed, share=share)
