"""What can be set about any training, whatever its loss. Light: no torch here.

In: fields of the recipe's `correct` and `distill` sections. Out: `TrainingConfig`. Knows nothing of
teachers, or of how training works.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.core.stage import StageConfig
from potstill.models.adapter_config import LoraConfig


class DeepSpeedConfig(BaseModel):
    """What DeepSpeed divides among the processes, with `sharding: deepspeed`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    zero_stage: Literal[1, 2, 3] = Field(
        2,
        description="Of ZeRO. 1: AdamW's moments are in parts. 2: gradients too. 3: the weights as "
        "well, and a layer is put together while it computes.",
    )
    offload_optimizer: bool = Field(
        False,
        description="Moments and the fp32 weights that they change lie in the computer's memory, "
        "and the optimizer's step is computed there.",
    )


class TrainingConfig(StageConfig):
    """How rows become steps and steps change weights, whatever the loss is."""

    not_in_key: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_minutes", "trackers", "processes", "restarts", "sharding", "deepspeed"}
    )

    template: str = Field(
        "",
        description="Chat template (Jinja) that rows are put into instead of the models' own; the "
        "student carries it into every file. Filled by the recipe.",
    )
    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training rows.")
    max_tokens: int | None = Field(
        None, gt=0, description="Stop after so many tokens, if the epochs are not over before."
    )
    sequence_tokens: int = Field(
        1024, ge=16, description="Longest row; longer ones are cut, counted and reported."
    )
    step_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens of an optimizer step, about; what rows share counts for each of them.",
    )
    micro_tokens: int = Field(
        4096, ge=16, description="Most tokens, with padding, that are computed at once: memory."
    )
    share_beginnings: bool = Field(
        True,
        description="Compute the tokens that rows have in common at their beginning, such as a "
        "passage with several questions, once: the same gradient of such rows in less time. They "
        "stay in one optimizer step. Has no effect with lora.dropout.",
    )
    batching: Literal["auto", "packed", "buckets"] = Field(
        "auto",
        description="packed: rows stand one after the other in one sequence without padding, each "
        "seeing itself alone. buckets: rows of like length side by side, padded. auto: packed if "
        "the models were tried and say the same for packed rows as for single ones.",
    )
    learning_rate: float = Field(5e-4, gt=0, le=1, description="AdamW's highest learning rate.")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine",
        description="After warm-up: cosine to zero, or stable and then a straight decay over the "
        "last fifth (wsd).",
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of steps for the warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's decoupled weight decay.")
    adam_beta2: float = Field(0.98, gt=0, lt=1, description="AdamW's second decay rate.")
    optimizer: Literal["auto", "adamw", "paged_adamw"] = Field(
        "auto",
        description="adamw: PyTorch's, fused. paged_adamw: bitsandbytes', whose moments move to "
        "the processor's memory when the GPU's is full; it needs CUDA. auto: paged_adamw for "
        "adapter: qlora on CUDA, else adamw.",
    )
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    freeze_embeddings: bool = Field(
        False,
        description="Keep the embeddings and the output layer as the teacher has them.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Of the matrix products; weights stay fp32. auto: bf16 where the hardware has "
        "instructions for it.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only each layer's input and compute the rest again in the backward pass: "
        "less memory, more time.",
    )
    compile: bool = Field(
        False,
        description="Compile the student's layers with torch.compile; attention stays as it is. On "
        "a CPU it needs a C++ compiler, and brings little (docs/experiments.md).",
    )

    lora: LoraConfig = Field(
        default_factory=lambda: LoraConfig(), description="The low-rank adapters' settings."
    )

    validations: int = Field(
        6, ge=1, le=1000, description="Times that the held-out loss is measured while training."
    )
    validation_tokens: int = Field(
        8192, ge=64, description="Most tokens of held-out rows that a validation measures."
    )
    patience: int = Field(
        3,
        ge=0,
        description="Stop after so many validations without a better loss; 0 never stops early.",
    )
    checkpoint_minutes: float = Field(
        2.0,
        gt=0,
        description="Longest time between checkpoints; each validation writes one too.",
    )
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1,
        description="Processes of this machine that share each step's rows, one a GPU where there "
        "are GPUs. auto: as many as there are GPUs, 1 without. The result is the same within "
        "rounding; with lora.dropout other numbers are dropped.",
    )
    sharding: Literal["none", "fsdp", "deepspeed"] = Field(
        "none",
        description="Of several processes. none: each holds the whole student. fsdp: each holds a "
        "part of its weights, gradients and moments, and a layer is put together while it "
        "computes: less memory, more traffic; the gradient is the same. deepspeed: DeepSpeed "
        "holds in parts what `deepspeed` says (extra deepspeed).",
    )
    deepspeed: DeepSpeedConfig = Field(
        default_factory=lambda: DeepSpeedConfig(), description="For sharding: deepspeed."
    )
    restarts: int = Field(
        3,
        ge=0,
        le=1000,
        description="Times that all processes go on from the last checkpoint by themselves after "
        "one of several has died.",
    )
    trackers: tuple[Literal["mlflow", "wandb", "trackio"], ...] = Field(
        (),
        description="Where the curves go besides TensorBoard; each must be installed, and takes "
        "its address and keys from its own environment variables.",
    )

    @model_validator(mode="after")
    def _rows_fit(self) -> TrainingConfig:
        if self.micro_tokens < self.sequence_tokens:
            raise ValueError("micro_tokens must not be smaller than sequence_tokens")
        if self.sharding != "none" and (self.compile or self.optimizer == "paged_adamw"):
            raise ValueError(
                f"sharding: {self.sharding} goes neither with compile nor with paged_adamw"
            )
        return self
