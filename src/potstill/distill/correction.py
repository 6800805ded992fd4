"""Fine-tune a teacher on the rows that it is to teach, and keep it only if that made it better.

In: a teacher's reference, rows with their held-out part. Out: the corrected teacher's folder and
what was measured; no folder if the teacher as it came says the held-out rows as well. Knows
nothing of stages or students. The training is `train.py`'s, with the cross-entropy alone.

A teacher that has never seen the domain's text is unsure of it, and what it is unsure of it cannot
teach. Source: Sreenivas et al. 2024, arXiv:2408.11796.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.core.events import Emitter
from potstill.core.files import read_json, write_json
from potstill.distill import attention, held_out
from potstill.distill.batches import encode_rows
from potstill.distill.config import DistillConfig
from potstill.distill.correct_config import CorrectConfig
from potstill.distill.lessons import Lessons
from potstill.distill.material import PADDING, Material, check_there_are_rows, prepare
from potstill.distill.ranks import Ranks
from potstill.distill.terms import TermLoss, Weights
from potstill.distill.train import train_student
from potstill.errors import PotstillError
from potstill.models import refs
from potstill.models.cast import cast
from potstill.models.device import device_here
from potstill.models.load import load_model, load_tokenizer
from potstill.models.save import save_model
from potstill.records import Example


@dataclass(frozen=True)
class Correction:
    """What came of it. Losses are mean cross-entropies of the held-out rows, nats a token."""

    method: str
    tokens_counted: str
    """The tokens that the losses count: all, or answer."""
    loss_before: float
    loss_after: float
    """Of the weights as they are saved, in bf16."""
    kl_to_the_original: float
    """Forward KL from the teacher as it came to the corrected one, over all held-out tokens."""
    kept: bool
    """Whether the corrected teacher is better, and used."""
    steps: int
    best_step: int
    tokens: int
    history: dict[str, list[dict[str, float]]]

    def as_dict(self) -> dict[str, Any]:
        """A JSON value; `Correction(**value)` reads it back."""
        return asdict(self)


def correct(
    config: CorrectConfig,
    examples: Sequence[Example],
    unseen: Sequence[Example],
    *,
    target: Path,
    seed: int,
    work: Path,
    tensorboard: Path,
    events: Emitter,
) -> Correction:
    """Train on `examples`, compare on `unseen`, and write `target` if the teacher got better.

    work: checkpoints, from which a killed correction goes on; empty afterwards but for a mark.
    Errors: TrainingError for rows or models that cannot be trained with.
    """
    mark = work / "correction.json"
    ranks = Ranks.here()

    def earlier() -> Correction | None:
        done = Correction(**read_json(mark)) if mark.exists() else None
        return done if done and (target.is_dir() or not done.kept) else None

    if (done := ranks.first(earlier)) is not None:
        return done
    with _named_by_their_section():
        found, model, tokenizer = _trained(
            config.training, config.method, examples, unseen, seed, work, tensorboard, events
        )
    ranks.wait()
    if ranks.leads:
        write_json(mark, found.as_dict())
    for name, value in (("loss_before", found.loss_before), ("loss_after", found.loss_after)):
        events.metric(name, value)
    if found.kept and ranks.leads:
        save_model(model, tokenizer, target)
    elif not found.kept:
        events.warning(
            f"The correction did not make the teacher better on held-out rows (cross-entropy "
            f"{found.loss_before:.4f} before, {found.loss_after:.4f} after), so the teacher is "
            "used as it came."
        )
    if ranks.leads:
        for name in ("training", "teacher-validation"):
            shutil.rmtree(work / name, ignore_errors=True)
    ranks.wait()
    return found


def _trained(
    config: DistillConfig,
    method: str,
    examples: Sequence[Example],
    unseen: Sequence[Example],
    seed: int,
    work: Path,
    tensorboard: Path,
    events: Emitter,
) -> tuple[Correction, Any, Any]:
    """What was measured, and the trained teacher in bf16 with its tokenizer."""
    tokenizer = load_tokenizer(config.teacher, config.template)
    rows, validation = (
        encode_rows(some, tokenizer, config.sequence_tokens) for some in (examples, unseen)
    )
    check_there_are_rows(rows, validation)
    device = device_here()
    teacher = load_model(config.teacher).to(device)
    learner = load_model(config.teacher).to(device)
    material = prepare(
        config,
        teacher,
        learner,
        Lessons(tokenizer, rows, validation, examples, seed, events),
        digest=refs.digest(refs.parse(config.teacher)),
        work=work,
    )
    del teacher
    gc.collect()
    before = _held_out(learner, material, config)
    learner, trained = train_student(
        learner,
        material,
        config.objective,
        config=config,
        seed=seed,
        name="corrected",
        last_step=len(material.plan),
        patience=config.patience,
        work=work / "training",
        tensorboard=tensorboard,
        events=events,
    )
    # Measured as it will be used: steps smaller than half of bf16's spacing are lost in saving.
    cast(learner, torch.bfloat16)
    after = _held_out(learner, material, config)
    better = math.isfinite(after["loss"]) and after["loss"] < before["loss"]
    found = Correction(
        method=method,
        tokens_counted=config.ce_tokens,
        loss_before=before["loss"],
        loss_after=after["loss"],
        kl_to_the_original=after["kl"],
        kept=better,
        steps=trained.steps,
        best_step=trained.best_step,
        tokens=trained.tokens,
        history=trained.history,
    )
    return found, learner.to(torch.bfloat16), tokenizer


def _held_out(model: Any, material: Material, config: DistillConfig) -> dict[str, float]:
    """The held-out figures of a teacher, before and after by the same means, in fp32."""
    model.float().eval()
    if material.training.packed:
        attention.use(model)
    loss = TermLoss(
        model,
        material.validation_signal,
        config.objective,
        vocabulary=material.vocabulary,
        dtype=material.dtype,
    )
    found = held_out.figures(
        loss,
        material.validation_signal,
        material.validation,
        Weights(ce=1.0),
        padding=PADDING,
        ranks=Ranks.here(),
    )
    attention.unuse(model)
    return found


@contextmanager
def _named_by_their_section() -> Iterator[None]:
    """Errors of the shared training name the fields as the recipe's `correct` section has them."""
    try:
        yield
    except PotstillError as error:
        said, way_out = (
            text.replace("distill.adapter: none", "correct.method: full")
            .replace("distill.adapter", "correct.method")
            .replace("distill.", "correct.")
            for text in (error.message, error.hint)
        )
        raise type(error)(said, way_out) from error
