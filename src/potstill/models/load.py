"""Load a model into PyTorch: from the hub, a folder, a GGUF file, a package, or drawn anew.

In: a reference or a folder. Out: a Hugging Face folder (`model_folder`), its tokenizer, its model
in evaluation mode. A GGUF is dequantised once, its tokenizer mended and compared with llama.cpp,
and the result kept in the cache; from then on it loads like any folder. So does a model that is
not trained yet, once its weights are drawn by lot.
What is not trusted: pickle files, code that comes with a model, weights that do not fill the
whole model. Knows nothing of training.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from potstill.core.files import disk_errors, fsync_folder, read_json, write_json
from potstill.errors import ModelError
from potstill.models.cache import DRAW_SEED, converted_folder, drawn_folder
from potstill.models.refs import Reference, digest, gguf_file, hub_snapshot, parse
from potstill.models.tokens import (
    check_chat_template,
    mend_pre_tokenizer,
    separate_pad_from_eos,
    token_parity,
)
from potstill.models.weights import check_weights_fill, first_line, opened, weight_files

CHECKED = "checked.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Source = Reference | Path | str


def model_folder(source: Source) -> Path:
    """The model as a Hugging Face folder: config.json, safetensors, tokenizer files.

    A GGUF (a file, or in a package) becomes a folder in the cache, in float32, so that each
    weight is exactly what its quantised form stands for. A fresh model (`fresh:`) becomes one too:
    transformers draws its weights, always the same. Errors: ModelError.
    """
    reference = source if isinstance(source, Reference) else parse(source)
    gguf = gguf_file(reference)
    if gguf is not None:
        return _converted(gguf, digest(reference))
    if reference.kind == "fresh":
        return _drawn(reference)
    if reference.kind == "hub":
        folder = hub_snapshot(reference)
    else:
        assert reference.path is not None
        folder = reference.path
    check_folder(folder)
    return folder


def load_tokenizer(source: Source, template: str = "") -> Any:
    """The model's tokenizer, with a pad token that is not its EOS (or none).

    template: a chat template instead of the tokenizer's own; empty: its own.
    """
    tokenizer = tokenizer_in(model_folder(source))
    if template:
        tokenizer.chat_template = template
    return tokenizer


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer of a folder, with a model or without. Errors: ModelError."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded: {first_line(error)}",
            "The folder needs tokenizer.json and tokenizer_config.json.",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer in {folder} has no tokenizer.json.",
            "Convert it once with transformers and save it again; only that form is supported.",
        )
    separate_pad_from_eos(tokenizer)
    return tokenizer


def load_model(source: Source, dtype: torch.dtype | str = torch.float32) -> Any:
    """The model in evaluation mode, on the CPU, in `dtype`; requires_grad is left as it is.

    dtype "auto": as it is stored; its weights then stay in the file, as long as nobody writes.
    Errors: ModelError for a missing or unknown config, truncated or missing weights.
    """
    folder = model_folder(source)
    wanted = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    with load_errors(folder):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=wanted,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    for kind in ("missing", "mismatched"):
        check_weights_fill(folder, kind, [str(key) for key in loading.get(f"{kind}_keys") or ()])
    model.eval()
    return model


@contextmanager
def load_errors(folder: Path) -> Iterator[None]:
    """Quietly; what transformers refuses of a folder, as a ModelError."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The model in {folder} cannot be loaded: {first_line(error)}") from error


def check_folder(folder: Path) -> None:
    """Errors: ModelError unless the folder has a known config and whole safetensors files."""
    check_config(folder)
    for path in weight_files(folder):
        with opened(path) as content:
            content.keys()


def check_config(folder: Path) -> None:
    """Errors: ModelError unless the folder has a config that transformers knows."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"The folder {folder} has no config.json, so it is no Hugging Face model.",
            "Point to the folder that holds config.json and model.safetensors.",
        )
    try:
        with quiet():
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{config} is not a config that transformers {transformers.__version__} knows: "
            f"{first_line(error)}",
            "A newer transformers may know it; models that bring their own code are not run.",
        ) from error


def _converted(gguf: Path, sha256: str) -> Path:
    """The cached Hugging Face folder of a GGUF, made if it is not there, checked if it must be."""
    target = converted_folder(sha256)
    models = target.parent
    with disk_errors(models, "write to the cache folder"):
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{target.name}.lock"):
            if not target.is_dir():
                _convert(gguf, sha256, models, target)
            elif read_json(target / CHECKED)["engines"] != _engines():
                # Another version of an engine may read text differently: compare again.
                tokenizer = AutoTokenizer.from_pretrained(
                    target, local_files_only=True, trust_remote_code=False
                )
                _check_against_llamacpp(tokenizer, gguf)
                write_json(target / CHECKED, {"gguf_sha256": sha256, "engines": _engines()})
    return target


def _convert(gguf: Path, sha256: str, models: Path, target: Path) -> None:
    metadata = gguf_metadata(gguf)
    work = Path(tempfile.mkdtemp(dir=models, prefix=".convert-"))
    try:
        with _alone(gguf) as alone:
            tokenizer = _gguf_tokenizer(alone, metadata)
            _check_against_llamacpp(tokenizer, gguf)
            model = _gguf_model(alone, metadata)
        _name_special_tokens(model, tokenizer)
        with quiet():
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
        write_json(work / CHECKED, {"gguf_sha256": sha256, "engines": _engines()})
        _keep(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _keep(work: Path, target: Path) -> None:
    """Give a folder of the cache its name, now that it is whole."""
    for path in work.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o644)  # safetensors writes for the owner alone; the cache may be shared
    work.chmod(0o755)
    work.rename(target)
    fsync_folder(target.parent)


def _drawn(reference: Reference) -> Path:
    """The cached Hugging Face folder of a fresh model, made if it is not there."""
    target = drawn_folder(digest(reference))
    models, shape = target.parent, reference.path
    assert shape is not None
    with disk_errors(models, "write to the cache folder"):
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{target.name}.lock"):
            if not target.is_dir():
                _draw(shape, models, target)
    return target


def _draw(shape: Path, models: Path, target: Path) -> None:
    check_config(shape)
    tokenizer = tokenizer_in(shape)
    work = Path(tempfile.mkdtemp(dir=models, prefix=".draw-"))
    try:
        with load_errors(shape), torch.random.fork_rng(devices=[]):
            torch.manual_seed(DRAW_SEED)
            config = AutoConfig.from_pretrained(
                shape, local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
            rows, words = len(model.get_output_embeddings().weight), len(tokenizer)
            if rows < words:
                raise ModelError(
                    f"The tokenizer in {shape} knows {words} tokens, but the vocab_size of its "
                    f"config.json is {rows}.",
                    "Make vocab_size as large, or take the tokenizer that belongs to it.",
                )
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
        _keep(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _alone(gguf: Path) -> Iterator[Path]:
    """The GGUF in a folder of its own: transformers would mix in a config that lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / gguf.name
        link.symlink_to(gguf.resolve())
        yield link


def gguf_metadata(gguf: Path) -> dict[str, Any]:
    """The GGUF's key-value fields, long lists left out. Errors: ModelError if it is damaged."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        end = max((one.data_offset + one.n_bytes for one in reader.tensors), default=0)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if len(field.data) <= 64  # token lists are read by transformers itself
        }
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise ModelError(
            f"{gguf} is not a whole GGUF file: {first_line(error)}",
            "It may have been cut short while it was copied; fetch it again.",
        ) from error
    if end > gguf.stat().st_size:
        raise ModelError(
            f"{gguf} is truncated: its tensors need {end} bytes, it has {gguf.stat().st_size}.",
            "It may have been cut short while it was copied; fetch it again.",
        )
    return fields


def _gguf_tokenizer(gguf: Path, metadata: dict[str, Any]) -> Any:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, trust_remote_code=False
            )
    except Exception as error:  # transformers raises what it meets inside; all mean the same here
        raise _unconvertible(gguf, metadata, error) from error
    mend_pre_tokenizer(tokenizer, metadata.get("tokenizer.ggml.pre"))
    separate_pad_from_eos(tokenizer)
    return tokenizer


def _gguf_model(gguf: Path, metadata: dict[str, Any]) -> Any:
    try:
        # Its progress bar over the tensors obeys no setting; it asks for stderr when it starts.
        with quiet(), redirect_stderr(io.StringIO()):
            return AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except Exception as error:
        raise _unconvertible(gguf, metadata, error) from error


def _unconvertible(gguf: Path, metadata: dict[str, Any], error: Exception) -> ModelError:
    architecture = metadata.get("general.architecture", "unknown")
    return ModelError(
        f"transformers {transformers.__version__} cannot read {gguf} (architecture "
        f"{architecture}): {first_line(error)}",
        "Use the model's original Hugging Face folder or hub id.",
    )


def _check_against_llamacpp(tokenizer: Any, gguf: Path) -> None:
    token_parity(tokenizer, gguf).require(f"The tokenizer of {gguf.name}")
    check_chat_template(tokenizer, gguf)


def _name_special_tokens(model: Any, tokenizer: Any) -> None:
    """Make config and generation config say the same special tokens as the tokenizer."""
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def _engines() -> dict[str, str]:
    return {name: version(name) for name in ("xllamacpp", "transformers", "tokenizers")}


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' progress bars and advice while a model is loaded or saved.

    Its errors still come through as exceptions.
    """
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # A GGUF's read-only memory map is only read from, never written through torch.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
