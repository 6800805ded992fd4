"""The model card of a student that marks answers: README.md in the Hugging Face form.

In: results.json of evaluate, export.json. Out: Markdown with a YAML header. Every figure comes from
those two. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill import __version__
from potstill.export.card import NAMES, quality, table

HEADER = """---
library_name: transformers
pipeline_tag: question-answering
tags:
- distillation
- extractive-question-answering
- onnx
- potstill
---
"""
USE = """```python
import potstill

reader = potstill.SpanReader("safetensors")
found = reader.answer("When is the boiler drained?", passage)
print(found.answer, found.score, found.start, found.end)

potstill.SpanReader("safetensors", onnx="model-int8.onnx")  # the same in ONNX Runtime
```

In transformers it is an `AutoModelForQuestionAnswering`; `reader.json` says how passages were cut.
"""
NAMED = {**NAMES, "finetuned": "student, trained on the rows alone"}


def model_card(results: Mapping[str, Any], exported: Mapping[str, Any], training_rows: int) -> str:
    """The whole README.md. training_rows: examples in train.jsonl."""
    files = {key: model["file"] for key, model in exported["models"].items()}
    models = {**results["models"], **exported["models"]}
    best = exported["recommended"]
    return "\n".join(
        [
            HEADER,
            "# A student that marks answers\n",
            f"Distilled with Potstill {__version__} on {training_rows} questions: given a question "
            "and a passage it marks the passage's own words that answer, says how probable they "
            "are, or that the passage does not answer.\n",
            "## Files\n",
            "- `safetensors/`: for transformers and further training",
            *(f"- `{file}`: for ONNX Runtime" for file in files.values()),
            "\n## Figures\n",
            f"On held-out questions, each with its {exported['level']:.0%} bootstrap interval; `n` "
            "is their number. EM and F1 with SQuAD's normalisation.\n",
            quality(models, files),
            "",
            _size(models, files),
            "\n## Checked before release\n",
            *(_parity_line(hop) for hop in exported["chain"]),
            "\n## How to use\n",
            f"Take `{best['file']}`: {best['why']}.\n",
            USE,
            "## Limits\n",
            "It copies words of the passage it is given, and knows nothing else. A passage that "
            "does not hold the answer makes it guess, unless it says that there is none. The "
            "figures above hold for questions like the held-out ones.\n",
        ]
    )


def _size(models: Mapping[str, Any], files: Mapping[str, str]) -> str:
    rows = [
        [
            f"`{files[key]}`" if key in files else NAMED.get(key, key),
            f"{(model['parameters'] or 0) / 1e6:.1f} M",
            f"{model['disk_bytes'] / 1e6:.1f} MB",
            f"{model['peak_memory_bytes'] / 1e6:.0f} MB",
            f"{model['questions_per_second']:.1f}",
            f"{1000 * model['answer_s']:.0f} ms",
        ]
        for key, model in models.items()
    ]
    titles = ["model", "parameters", "disk", "peak memory", "questions/s", "an answer"]
    return table(titles, rows)


def _parity_line(hop: Mapping[str, Any]) -> str:
    kl, agreement, answers = hop["kl"], hop["agreement"], hop["f1_difference"]
    return (
        f"- `{hop['file']}` reloaded in ONNX Runtime: {hop['prompts']} questions, KL of start and "
        f"end to PyTorch {kl['value']:.2g} nats (at most {hop['allowance']['max_kl']:g} allowed), "
        f"the same likeliest span in {agreement['value']:.1%}, answer F1 {answers['value']:+.3f} "
        f"({answers['low']:+.3f} to {answers['high']:+.3f})."
    )
