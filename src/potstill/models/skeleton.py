"""A model built from its files piece by piece: without weights, or without some of its layers.

In: a model reference or folder. Out: the model with empty weights (`skeleton`, `outline`), or with
all but the layers that it loses (`load_without`), so that no more is read than is used. Knows
nothing of how a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from potstill.errors import ModelError
from potstill.models.body import body_of, layers_of, prefixes
from potstill.models.load import Source, load_errors, model_folder
from potstill.models.surgery import drop_layers
from potstill.models.weights import WeightFiles

RESIDENT = "A teacher can be loaded whole instead (distill.teacher_loading: resident)."


def load_without(source: Source, dropped: Iterable[int]) -> Any:
    """The model in fp32 without these decoder layers, which are not read.

    The same as `surgery.drop_layers(load_model(source), dropped)`. Errors: ModelError of both.
    """
    folder, gone = model_folder(source), set(dropped)
    model = skeleton(folder)
    files = WeightFiles(folder, model)
    kept = [number for number in range(len(layers_of(body_of(model)))) if number not in gone]
    tied = is_tied(model, files)
    embedding, head = ends_of(model)
    prefix = prefixes(model)[0]
    drop_layers(model, gone)
    if (folder / "generation_config.json").is_file():
        with load_errors(folder):
            model.generation_config = GenerationConfig.from_pretrained(folder)
    state = model.state_dict()
    lent = (head if files.has(embedding) else embedding) if tied else ""
    targets = {
        name: torch.empty_like(tensor, device="cpu")
        for name, tensor in state.items()
        if name != lent
    }
    stored = {_numbered(name, prefix, kept): tensor for name, tensor in targets.items()}
    files.check(stored)
    files.read(stored)
    for name, tensor in targets.items():
        owner, _, own = name.rpartition(".")
        put(model.get_submodule(owner), own, tensor, learns=True)
    if tied:
        table, output = model.get_input_embeddings(), model.get_output_embeddings()
        one, other = (output, table) if lent == head else (table, output)
        one.weight = other.weight
    return model.eval()


def _numbered(name: str, prefix: str, kept: list[int]) -> str:
    """A layer's tensor as it is called in the intact model. prefix: of all layers' names."""
    if not name.startswith(prefix):
        return name
    number, dot, own = name.removeprefix(prefix).partition(".")
    return f"{prefix}{kept[int(number)]}{dot}{own}"


def skeleton(folder: Path) -> Any:
    """The model without weights, as fp32; buffers that are no weights are there."""
    with load_errors(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise ModelError(
                f"The weights in {folder} are quantised, which is not read piece by piece.",
                f"Use the model as it was before it was quantised. {RESIDENT}",
            )
        with init_empty_weights(include_buffers=False), no_init_weights():
            return AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )


def outline(source: Source) -> Any:
    """The skeleton with what is tied in the files tied, so that its weights can be counted."""
    folder = model_folder(source)
    model = skeleton(folder)
    if is_tied(model, WeightFiles(folder, model)):
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


def ends_of(model: Any) -> tuple[str, str]:
    """Names of the embeddings' and the output layer's weights."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = (
        f"{names[id(one)]}.weight"
        for one in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    return embedding, head


def is_tied(model: Any, files: WeightFiles) -> bool:
    """Whether embeddings and output layer are one, as transformers decides it."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return False
    embedding, head = ends_of(model)
    both = files.has(embedding) and files.has(head)
    return not both or files.equal(embedding, head)


def put(module: Any, name: str, tensor: Tensor, learns: bool = False) -> None:
    """Put a tensor in the place of a parameter or a buffer."""
    if name in module._parameters:
        is_same = isinstance(tensor, nn.Parameter)
        setattr(module, name, tensor if is_same else nn.Parameter(tensor, requires_grad=learns))
    else:
        module._buffers[name] = tensor
