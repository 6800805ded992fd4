"""What can be set about where the student comes from. Light: no torch here.

In: the recipe's `distill.student` section. Out: `StudentConfig`, and the `Target` that it asks for.
Knows nothing of how a model is cut.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.models.shape import FAMILIES
from potstill.models.targets import BF16_BYTES, Axes, Target

DEFAULT_RATIO = 0.75
COMPARED_TOKENS = 4096
"""Of the text to fit to, so many for each of several shapes that are compared."""
SIZES = ("parameters_ratio", "parameters", "memory", "speed", "drop_layers")


class StudentConfig(BaseModel):
    """A smaller pretrained model, or how the student is cut from the teacher.

    At most one of `parameters_ratio`, `parameters`, `memory`, `speed` and `drop_layers` says how
    small it must be; none of them stands for `parameters_ratio: 0.75`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        min_length=1,
        description="Model reference of a pretrained student; nothing is cut then.",
    )
    parameters_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest share of the teacher's parameters that the student may have. 0.75 if "
        "no other size is given.",
    )
    parameters: int | None = Field(
        None, gt=0, description="Most parameters that the student may have, tied ones once."
    )
    memory: int | None = Field(
        None, gt=0, description="Most bytes of the student's weights as they are saved, in bf16."
    )
    speed: float | None = Field(
        None,
        ge=1,
        description="How many times as fast as the teacher the student must decode, reckoned by "
        "the weights that are read for a token.",
    )
    drop_layers: int | None = Field(None, ge=0, description="Decoder layers to drop.")
    axes: Literal["auto", "depth", "width", "both"] = Field(
        "auto",
        description="What is cut. depth: decoder layers. width: the hidden size, the neurons of "
        "the MLPs, attention heads. both: either. Of the shapes that meet the size, some are tried "
        "and the one with the least KL to the teacher is taken. auto: both where the family's "
        "widths can be cut and the teacher is in memory, else depth.",
    )
    vocabulary: int | None = Field(
        None,
        ge=256,
        description="How many tokens of the vocabulary the student keeps: those of the training "
        "and validation rows in any case, all bytes, then the most frequent ones. What goes counts "
        "towards the size above. Other words can still be read and written, in more tokens. Unset: "
        "all.",
    )
    method: Literal["greedy", "influence"] = Field(
        "greedy",
        description="How the dropped layers are chosen. greedy: again and again the layer whose "
        "removal raises the KL to the teacher least. influence: those that change their input "
        "least, measured once.",
    )
    round_to: int = Field(
        256,
        ge=1,
        le=4096,
        description="Hidden and intermediate size are cut to multiples of it; the k-quants of "
        "llama.cpp need 256. Halved, with a warning, where no such size is small enough.",
    )
    candidates: int = Field(
        4, ge=1, le=64, description="Shapes that are tried where widths are cut."
    )
    refit: bool = Field(
        True,
        description="Fit the projections of what is left to what the whole model computes, by "
        "least squares; kept only where it brings the student nearer to the teacher on text that "
        "it was not fitted to.",
    )
    start: Literal["teacher", "uncorrected"] = Field(
        "teacher",
        description="Whose weights the student begins with: those of the teacher that teaches it, "
        "or those that this teacher had before its correction.",
    )
    calibration_tokens: int = Field(
        512,
        ge=64,
        le=65_536,
        description="Tokens of training rows on which layers are measured, and shapes compared.",
    )
    fit_tokens: int = Field(
        4096,
        ge=64,
        le=1_048_576,
        description="Tokens of training rows on which widths are measured and projections fitted.",
    )
    steps: int = Field(
        1,
        ge=1,
        le=16,
        description="Cut in so many steps of equal ratio, with a short distillation between them.",
    )
    step_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Tokens of each distillation between two cuts, as a share of the last one's.",
    )

    def target(self, parameters: int, read: int) -> Target:
        """How small the student must be. parameters, read: the teacher's weights, and those of
        them that are read for one new token (`Shape.read_parameters`)."""
        said = f"distill.student.{self.size}: {getattr(self, self.size) or self.ratio:,g}"
        if self.parameters is not None:
            return Target(self.parameters, said)
        if self.memory is not None:
            return Target(self.memory // BF16_BYTES, said)
        if self.speed is not None:
            return Target(read / self.speed, said, reading=True)
        return Target(parameters * self.ratio, said)

    def along(self, family: object) -> Axes:
        """What is cut of a teacher of that `model_type`."""
        if self.axes != "auto":
            return self.axes
        return "both" if family in FAMILIES and self.drop_layers is None else "depth"

    @property
    def ratio(self) -> float:
        """The share of the teacher's parameters, if no other size is given."""
        return DEFAULT_RATIO if self.parameters_ratio is None else self.parameters_ratio

    @property
    def size(self) -> str:
        """The name of the field that says how small the student must be."""
        given = [name for name in SIZES if getattr(self, name) is not None]
        return given[0] if given else "parameters_ratio"

    @model_validator(mode="after")
    def _fits_together(self) -> StudentConfig:
        given = [name for name in SIZES if getattr(self, name) is not None]
        if self.model is not None:
            # Compared with the defaults: a recipe that was written out names every field.
            fields = type(self).model_fields
            cutting = [name for name in CUTTING if getattr(self, name) != fields[name].default]
            if cutting:
                raise ValueError(
                    f"a pretrained student (model) is not cut, so {', '.join(sorted(cutting))} "
                    "cannot be given; leave it out"
                )
            return self
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} contradict each other; keep one and set the others to null"
            )
        if self.drop_layers is not None and self.axes not in ("auto", "depth"):
            raise ValueError(f"drop_layers cuts depth alone, not axes: {self.axes}")
        if self.drop_layers is not None and self.steps > 1:
            raise ValueError("steps need a size such as parameters_ratio, not drop_layers")
        return self


CUTTING = tuple(name for name in StudentConfig.model_fields if name != "model")
