"""What reads windows: PyTorch, or an ONNX file in ONNX Runtime.

In: a model's folder, and for ONNX its file. Out: logits of windows, both ways the same form. Knows
nothing of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from potstill.core.extras import require
from potstill.errors import ModelError
from potstill.models.load import load_errors, load_tokenizer
from potstill.models.spans.decoding import Logits
from potstill.models.spans.model import collate, load_span_model, logits_of
from potstill.models.spans.windows import Window

OUTPUTS = ("start_logits", "end_logits")
"""Names of an ONNX file's outputs, [batch, tokens] each."""


class Backend(Protocol):
    """A model that marks answers, wherever it runs."""

    tokenizer: Any
    config: Any

    def logits(self, windows: Sequence[Window]) -> Logits:
        """Start and end logits of each window's own tokens, in the windows' order."""
        ...


class TorchBackend:
    """The model in PyTorch, on the CPU, in float32."""

    def __init__(self, folder: Path) -> None:
        """Errors: ModelError for a folder that holds no model that marks answers."""
        self.model = load_span_model(folder)
        self.tokenizer = load_tokenizer(folder)
        self.config = self.model.config

    def logits(self, windows: Sequence[Window]) -> Logits:
        """Several windows of like length at once."""
        return logits_of(self.model, self.tokenizer, windows)


class OnnxBackend:
    """An exported file; of the model's folder only tokenizer and configuration are read."""

    def __init__(self, folder: Path, file: Path, threads: int | None = None) -> None:
        """threads: of one call; None: as many as PyTorch. Errors: ModelError for a file that ONNX
        Runtime cannot run; MissingExtraError."""
        from transformers import AutoConfig

        self.tokenizer = load_tokenizer(folder)
        with load_errors(folder):
            self.config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        self.session = open_session(file, threads)
        self.names = [one.name for one in self.session.get_inputs()]

    def logits(self, windows: Sequence[Window]) -> Logits:
        """One window at a time: int8 scales its activations by all that it reads at once. May be
        called by several threads."""
        found = []
        for window in windows:
            batch = collate(self.names, self.tokenizer, [window])
            feed = {name: value.numpy() for name, value in batch.items()}
            starts, ends = self.session.run(list(OUTPUTS), feed)
            found.append((torch.from_numpy(starts[0]), torch.from_numpy(ends[0])))
        return found


def open_session(file: Path, threads: int | None = None) -> Any:
    """ONNX Runtime's session of a file, on the CPU. threads: of one call; None: as PyTorch's.

    Errors: ModelError for a file that it cannot run; MissingExtraError.
    """
    onnxruntime = require("onnxruntime", "onnx", "Running ONNX files")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises classes of its own, without a common one
        raise ModelError(
            f"ONNX Runtime cannot run {file.name}: {str(error).strip().splitlines()[0][:300]}"
        ) from error
