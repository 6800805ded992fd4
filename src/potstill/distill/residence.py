"""What needs the whole teacher in memory, so that it cannot be read layer by layer. Light.

In: the `distill` section. Out: the first reason, in words, or None. Knows nothing of sizes, which
are `loading.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potstill.distill.config import DistillConfig


def why_resident(config: DistillConfig, *, cuts: bool) -> tuple[str, str] | None:
    """What needs the whole teacher in memory, and the way out; None: nothing does."""
    if len(config.teachers) > 1:
        return (
            "several distill.teachers are in memory one beside the other",
            "Use one teacher.",
        )
    if config.teacher_precision != "full":
        return (
            f"distill.teacher_precision: {config.teacher_precision} keeps the teacher in memory in "
            "fewer bits",
            "Set distill.teacher_precision: full.",
        )
    if config.on_policy.used:
        return (
            "distill.on_policy asks the teacher at every step, for which it must be in memory",
            "Set distill.on_policy.share to 0.",
        )
    if config.needs_live_teacher or config.signal == "live":
        what = "distill.signal: live" if config.signal == "live" else "hidden and attention terms"
        return (
            f"{what} asks the teacher at every step, for which it must be in memory",
            "Set distill.signal: auto and leave out hidden and attention terms.",
        )
    if cuts and config.student.axes in ("width", "both"):
        return (
            f"distill.student.axes: {config.student.axes} measures and fits the teacher's layers, "
            "for which they must be in memory",
            "Set distill.student.axes: depth, or name a pretrained student (student.model).",
        )
    if cuts and config.student.refit:
        return (
            "distill.student.refit fits what is left to the whole teacher, for which it must be in "
            "memory",
            "Set distill.student.refit: false, or name a pretrained student (student.model).",
        )
    if cuts and config.student.steps > 1:
        return (
            "distill.student.steps cuts a model that is in memory again and again",
            "Set distill.student.steps: 1, or name a pretrained student (student.model).",
        )
    if cuts and config.student.method == "greedy":
        return (
            "distill.student.method: greedy runs the teacher's layers again and again, for which "
            "they must be in memory",
            "Set distill.student.method: influence, or name a pretrained student (student.model).",
        )
    return None
