"""Training on the student's own answers: which rows they replace, where they are kept, replayed.

    plan of steps --seeded coin a row--> asked for --+-- generated (`decoding.py`) or replayed
                                                     |
                       a refresh: the next N steps --+--> kept as JSON Lines --> rows of a step

In: rows, a plan of steps, the share, a student. Out: the steps as they are trained, with rollouts
in the place of rows' answers, and every rollout on disk. Knows nothing of losses: the teacher
judges a rollout's tokens as it judges any row's, and the cross-entropy leaves them out as they are
not gold (`batches.counted`).

It is generalised knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649), algorithm 1: with
chance `share` a row's answer is drawn from the student, else it is the data's. A rollout depends on
the weights, the prompt and a seed of its own alone, so a training that was killed generates the
same, and one that kept them generates none.
"""

from __future__ import annotations

import hashlib
import random
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from potstill.core.events import Emitter
from potstill.core.files import read_records, write_records
from potstill.distill.batches import Micro, Row, RowSet
from potstill.distill.families import group
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.packing import split
from potstill.distill.schedules import weight_at
from potstill.errors import TrainingError
from potstill.records import Record

JUDGED = 8
"""Rollouts of a refresh from which on it is judged whether the student ends its answers."""
ENDLESS, OFTEN = 0.95, 0.5
"""Share of rollouts that were cut: at which training is stopped, and at which it is said."""


class Rollout(Record):
    """An answer of the student to a training row's prompt."""

    step: int = Field(ge=0, description="Optimizer step that trains on it, from 0.")
    weights_step: int = Field(ge=0, description="Steps that the student had done when it wrote it.")
    row: int = Field(ge=0, description="Place of the row among the training rows, from 0.")
    id: str = Field(description="The row's id.")
    prompt: str = Field(description="Digest of the prompt's token ids.")
    seed: int = Field(ge=0, description="Of its draws.")
    text: str = Field(description="The answer as text, without special tokens.")
    ids: tuple[int, ...] = Field(min_length=1, description="Its token ids, with the end token.")
    truncated: bool = Field(description="It was cut, as no end token came.")


class Asked(NamedTuple):
    """A rollout that a step needs."""

    step: int
    row: int
    seed: int


Source = Callable[[Sequence[Asked], int], list[Rollout]]
"""source(asked, weights_step) -> the rollouts in their order."""


def eligible(row: Row) -> bool:
    """Whether the row has a whole prompt and room for an answer: not a passage, not cut."""
    return not row.bare and not row.truncated


def asked_for(
    rows: Sequence[Row], plan: Sequence[Sequence[Micro]], config: OnPolicyConfig, seed: int
) -> list[list[Asked]]:
    """For each step the rows whose answer the student writes itself: a seeded coin for each."""
    return [
        [
            Asked(number, row, random.Random(f"{seed}/rollout/{number}/{row}").getrandbits(63))
            for micro in step
            for family in micro
            for row in family
            if eligible(rows[row])
            and random.Random(f"{seed}/share/{number}/{row}").random()
            < weight_at(config.share, number, len(plan))
        ]
        for number, step in enumerate(plan)
    ]


def prompt_digest(row: Row) -> str:
    """What tells a prompt from every other: of its token ids."""
    ids = array("q", row.ids[: row.answer_start])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:16]


def as_row(row: Row, rollout: Rollout) -> Row:
    """The row with the student's answer: the very tokens that it drew, which its text, read by a
    tokenizer again, need not give."""
    ids = (*row.ids[: row.answer_start], *rollout.ids)
    return replace(row, ids=ids, truncated=rollout.truncated, gold=False)


def mixed(
    data: RowSet, step: Sequence[Micro], own: Mapping[int, Row], micro_tokens: int
) -> tuple[RowSet, list[Micro]]:
    """The rows of a step with those of `own` in their places, and its micro-batches.

    own: row number -> the row to train on instead. Families without one stay as they are; the
    others are laid out anew by what their rows now share.
    """
    rows: list[Row] = []
    families: list[tuple[int, ...]] = []
    for family in (family for micro in step for family in micro):
        first = len(rows)
        rows += [own.get(number, data.rows[number]) for number in family]
        places = tuple(range(first, len(rows)))
        if len(family) == 1 or not any(number in own for number in family):
            families.append(places)
            continue
        ids = [rows[place].ids for place in places]
        grouped = group(ids, computed=micro_tokens, in_full=sum(map(len, ids)))
        families += [tuple(first + place for place in some) for some in grouped]
    found = RowSet(rows, families, data.packed)
    return found, split(found, families, micro_tokens)


def figures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What a refresh came to: means over its rollouts; nothing without any."""
    if not rollouts:
        return {}
    count = len(rollouts)
    return {
        "rollouts": float(count),
        "rollout_tokens": sum(len(one.ids) for one in rollouts) / count,
        "rollout_truncated": sum(one.truncated for one in rollouts) / count,
        "rollout_empty": sum(not one.text.strip() for one in rollouts) / count,
    }


def check_ends(rollouts: Sequence[Rollout], config: OnPolicyConfig, *, least: int = JUDGED) -> None:
    """Errors: TrainingError if nearly all of at least `least` rollouts were cut."""
    cut = sum(one.truncated for one in rollouts)
    if config.allow_endless or len(rollouts) < least or cut < ENDLESS * len(rollouts):
        return
    when = rollouts[0].weights_step
    longer = "Raise max_new_tokens if answers are that long; "
    if config.replay is not None:
        longer = "Replay another training; "
    raise TrainingError(
        f"{cut} of {len(rollouts)} answers of the student after {when} steps have no end within "
        f"{_limit(config)}: it does not stop.",
        f"{longer}let it learn from the data first, such as share: "
        "{start: 0, end: 1, begin: 0.3}; or set on_policy.allow_endless: true.",
    )


def _limit(config: OnPolicyConfig) -> str:
    if config.replay is not None:
        return "the limit of the training that is replayed"
    return f"distill.on_policy.max_new_tokens ({config.max_new_tokens})"


class Kept:
    """The rollouts of each refresh, a file each in a folder: whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, first: int) -> Path:
        """Of the refresh that begins with step `first`."""
        return self.folder / f"{first:08d}.jsonl"

    def read(self, first: int) -> list[Rollout] | None:
        """None: not generated yet."""
        path = self.path(first)
        return list(read_records(path, Rollout)) if path.exists() else None

    def write(self, first: int, rollouts: Iterable[Rollout]) -> None:
        """All or nothing."""
        write_records(self.path(first), rollouts)

    def join(self, target: Path) -> int:
        """All of them in one file, in the order of their steps; returns how many."""
        paths = sorted(self.folder.glob("*.jsonl"))
        return write_records(target, (one for path in paths for one in read_records(path, Rollout)))


class Refreshes:
    """The rollouts of every step, a refresh at a time: kept ones are read, others are made."""

    def __init__(
        self,
        asked: Sequence[Sequence[Asked]],
        config: OnPolicyConfig,
        source: Source,
        kept: Kept,
        events: Emitter,
    ) -> None:
        self.asked, self.config, self.source = asked, config, source
        self.kept, self.events = kept, events
        self._first = -1
        self._now: list[Rollout] = []
        self._warned = False

    def first_of(self, step: int) -> int:
        """The step at which the refresh of `step` begins."""
        return step // self.config.refresh_steps * self.config.refresh_steps

    def of(self, step: int) -> list[Rollout]:
        """All rollouts of the refresh that `step` belongs to.

        Errors: TrainingError if they are not those that are asked for, or have no ends.
        """
        first = self.first_of(step)
        if first != self._first:
            found = self.known(first)
            self._now, self._first = self._make(first) if found is None else found, first
            self._judge(self._now)
        return self._now

    def known(self, first: int) -> list[Rollout] | None:
        """Those of the refresh that begins with step `first`, if they are kept already."""
        found = self.kept.read(first)
        if found is not None and [(one.step, one.row, one.seed) for one in found] != self.wanted(
            first
        ):
            raise TrainingError(
                f"The rollouts in {self.kept.path(first)} are not those of this training.",
                "Delete the folder that holds them, and train again.",
            )
        return found

    def wanted(self, first: int) -> list[Asked]:
        """What the refresh that begins with step `first` asks for."""
        some = self.asked[first : first + self.config.refresh_steps]
        return [one for step in some for one in step]

    def _make(self, first: int) -> list[Rollout]:
        wanted = self.wanted(first)
        began = time.monotonic()
        found = self.source(wanted, first) if wanted else []
        self.kept.write(first, found)
        if found and self.config.replay is None:
            drawn = sum(len(one.ids) for one in found)
            speed = drawn / max(1e-9, time.monotonic() - began)
            self.events.metric("rollout_tokens_per_second", round(speed, 1), step=first + 1)
        return found

    def _judge(self, rollouts: Sequence[Rollout]) -> None:
        check_ends(rollouts, self.config)
        cut = sum(one.truncated for one in rollouts)
        if len(rollouts) >= JUDGED and cut >= OFTEN * len(rollouts) and not self._warned:
            self._warned = True
            self.events.warning(
                f"{cut} of {len(rollouts)} answers of the student were cut at "
                f"{_limit(self.config)}; they are trained on as they are."
            )


def replayed(
    path: Path, rows: Sequence[Row], asked: Sequence[Sequence[Asked]], patience: int
) -> Source:
    """The rollouts of an earlier training of the same rows.

    Errors: InputError for a line that is no rollout; TrainingError if it is of other rows, or does
    not hold what is asked for up to its last step, or (without `patience`) up to the end.
    """
    found: dict[tuple[int, int, int], Rollout] = {}
    for one in read_records(path, Rollout):
        known = rows[one.row] if one.row < len(rows) else None
        if known is None or known.id != one.id or prompt_digest(known) != one.prompt:
            raise TrainingError(
                f"{path} holds an answer to row {one.id}, which is not row {one.row} of this "
                "training, or has another prompt.",
                "Replay the rollouts of these rows with this teacher's template.",
            )
        found[one.step, one.row, one.seed] = one
    last = max((step for step, _, _ in found), default=-1)
    wanted = [one for step in asked for one in step]
    missing = [one for one in wanted if one not in found and (one.step <= last or not patience)]
    if missing or len(found) > len(wanted):
        raise TrainingError(
            f"{path} holds {len(found)} rollouts up to step {last + 1}; of the {len(wanted)} that "
            f"are asked for, {len(missing)} are missing.",
            "Use the seed, share, step_tokens and epochs of the training that it comes from.",
        )

    def source(some: Sequence[Asked], weights_step: int) -> list[Rollout]:
        gone = [one for one in some if one not in found]
        if gone:
            raise TrainingError(
                f"{path} ends at step {last + 1}, and training goes on to step {gone[0].step + 1}.",
                "Set distill.max_tokens or patience so that it ends where the earlier one did.",
            )
        return [found[one] for one in some]

    return source
