"""What a student is trained for: the terms of the loss, their weights, the tokens they count.

In: fields of a recipe, or keyword arguments. Out: `Objective`. Light: no torch here. Knows nothing
of how a term is computed (`losses.py`, `layers.py`, `maps.py`) or how long training takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.plugins import PluginReference
from potstill.distill.alignment import AlignmentConfig
from potstill.distill.schedules import Weight, ever

Tokens = Literal["answer", "all"]
DivergenceName = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "total_variation",
]
AnyDivergence = DivergenceName | PluginReference
DIVERGENCE_PARAMETERS: dict[str, float] = {
    "jsd": 0.5,
    "skew_forward_kl": 0.1,
    "skew_reverse_kl": 0.1,
    "adaptive_kl": 0.5,
}
"""The divergences that take a parameter, and what it is if the recipe does not say."""

Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Parameter = Annotated[float, Field(gt=0, lt=1)]
Layer = Annotated[int, Field(ge=1)]
LayerMap = Annotated[str, Field(pattern=r"^(uniform|last-[1-9][0-9]*)$")] | dict[Layer, Layer]


@dataclass(frozen=True)
class ActiveTokens:
    """Which predictions each term counts; None: the term is not used at all."""

    kd: Tokens | None
    ce: Tokens | None
    hidden: Tokens | None = None
    attention: Tokens | None = None


class HiddenConfig(BaseModel):
    """Intermediate hidden states that the student's are drawn to. Needs the live teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mse_weight: Weight = Field(
        0.0, description="Weight of the mean squared error, over features and pairs of layers."
    )
    cosine_weight: Weight = Field(0.0, description="Weight of 1 - cosine, mean over pairs.")
    tokens: Tokens = Field("all", description="Tokens whose states are compared.")
    layers: LayerMap = Field(
        "uniform",
        description="Which layers are compared: uniform (evenly spaced, the last with the last), "
        "last-3 (or another number: the last of both), or a map such as {1: 2, 2: 4} from the "
        "student's to the teacher's. Layer n is the output of the n-th decoder layer, from 1.",
    )
    projection: Literal["auto", "always"] = Field(
        "auto",
        description="A learned linear map from the student's states to the teacher's: where their "
        "widths differ, or always. It is no part of the student that is saved.",
    )

    @property
    def used(self) -> bool:
        """Whether any weight is ever above 0."""
        return ever(self.mse_weight) or ever(self.cosine_weight)


class AttentionConfig(BaseModel):
    """Attention maps that the student's are drawn to. Needs the live teacher, packed batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Weight = Field(
        0.0, description="Weight of KL(teacher's map || student's), mean over heads and pairs."
    )
    tokens: Tokens = Field("all", description="Tokens whose attention is compared.")
    layers: LayerMap = Field("last-1", description="Which layers, as for hidden states.")

    @property
    def used(self) -> bool:
        """Whether the weight is ever above 0."""
        return ever(self.weight)


class Objective(BaseModel):
    """The loss of an optimizer step; each mean is over the term's active tokens of the whole step.

    `kd_weight * T^2 * mean D(teacher || student; T) + ce_weight * mean CE`, and terms for hidden
    states and attention maps. A weight is a number, or `{start: 1, end: 0.2}`: a schedule.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kd_weight: Weight = Field(1.0, description="Weight of the divergence to the teacher.")
    kd_tokens: Tokens = Field("all", description="Tokens on which the teacher is imitated.")
    divergence: AnyDivergence | dict[AnyDivergence, Share] = Field(
        "forward_kl",
        description="D in the loss: one, or several with their shares, such as "
        "{forward_kl: 0.5, reverse_kl: 0.5}. plugin:NAME: that of a plug-in; `potstill plugins` "
        "lists those that are installed.",
    )
    divergence_parameter: Parameter | dict[DivergenceName, Parameter] | None = Field(
        None,
        description="beta of jsd (unset: 0.5), alpha of the skew divergences (0.1), the teacher's "
        "head share in adaptive_kl (0.5); by name if there are several. The others take none.",
    )
    temperature: float = Field(1.0, gt=0, le=20, description="T: both sides' logits / T.")
    ce_weight: Weight = Field(0.3, description="Weight of the cross-entropy on the rows.")
    ce_tokens: Tokens = Field("answer", description="Tokens that the cross-entropy counts.")
    hidden: HiddenConfig = Field(
        default_factory=lambda: HiddenConfig(), description="Intermediate hidden states."
    )
    attention: AttentionConfig = Field(
        default_factory=lambda: AttentionConfig(), description="Attention maps."
    )
    alignment: AlignmentConfig = Field(
        default_factory=lambda: AlignmentConfig(),
        description="A teacher with another tokenizer than the student's.",
    )

    @property
    def active(self) -> ActiveTokens:
        """Which tokens the terms count."""
        return ActiveTokens(
            kd=self.kd_tokens if ever(self.kd_weight) else None,
            ce=self.ce_tokens if ever(self.ce_weight) else None,
            hidden=self.hidden.tokens if self.hidden.used else None,
            attention=self.attention.tokens if self.attention.used else None,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Each divergence and its share."""
        if isinstance(self.divergence, dict):
            return dict(self.divergence)
        return {self.divergence: 1.0}

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters of those divergences that take one."""
        given = self.divergence_parameter
        named = {str(name): one for name, one in given.items()} if isinstance(given, dict) else {}
        return {
            name: named.get(name, DIVERGENCE_PARAMETERS[name])
            if not isinstance(given, float)
            else given
            for name in self.shares
            if name in DIVERGENCE_PARAMETERS
        }

    @property
    def needs_live_teacher(self) -> bool:
        """Whether a term looks into the teacher's layers, which no cache holds."""
        return self.hidden.used or self.attention.used

    @model_validator(mode="after")
    def _terms_fit_together(self) -> Objective:
        given, names = self.divergence_parameter, set(self.shares)
        if not names:
            raise ValueError("divergence: name at least one")
        if isinstance(given, dict):
            unknown = set(given) - (names & set(DIVERGENCE_PARAMETERS))
            if unknown:
                raise ValueError(f"divergence_parameter: {min(unknown)} takes none here")
        elif given is not None and len(names) > 1:
            raise ValueError("divergence_parameter: with several divergences, give it by name")
        elif given is not None and not names & set(DIVERGENCE_PARAMETERS):
            raise ValueError(f"divergence_parameter: {min(names)} takes no parameter")
        if self.alignment.method == "uld" and names != {"forward_kl"}:
            raise ValueError("divergence has no effect with alignment.method: uld; leave it out")
        if self.alignment.used and self.needs_live_teacher:
            raise ValueError(
                "alignment: hidden states and attention maps are compared token by token, which "
                "needs one tokenizer; set their weights to 0"
            )
        if not any((ever(self.kd_weight), ever(self.ce_weight), self.needs_live_teacher)):
            raise ValueError("every weight is 0, so nothing would be learnt")
        return self
