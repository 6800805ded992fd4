"""The model card: README.md in the Hugging Face form, written from the run's own figures.

In: results.json of evaluate, export.json, names. Out: Markdown with a YAML header. Every figure
comes from those two; nothing is claimed that was not measured. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from potstill import __version__
from potstill.models.packages import pinned
from potstill.models.refs import Reference

COLUMNS = (
    ("kl", "KL to teacher", "{:.3f}"),
    ("span_kl", "span KL to teacher", "{:.3f}"),
    ("agreement", "top-1 agreement", "{:.1%}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("bits_per_byte", "bits a byte", "{:.3f}"),
    ("marked_kl", "KL to teacher", "{:.3f}"),
    ("same_span", "same span as teacher", "{:.1%}"),
    ("f1", "answer F1", "{:.2f}"),
    ("em", "answer EM", "{:.2f}"),
)
NAMES = {
    "teacher": "teacher",
    "uncorrected": "teacher before its correction",
    "undistilled": "student, not trained yet",
    "finetuned": "student, fine-tuned on the text alone",
    "distilled": "**student, distilled (safetensors)**",
}


def model_card(
    teacher: Reference,
    name: str,
    results: Mapping[str, Any],
    exported: Mapping[str, Any],
    training_rows: int,
) -> str:
    """The whole README.md.

    exported: export.json's content, each model with its `file`. training_rows: examples in
    train.jsonl.
    """
    header = yaml.safe_dump(_header(teacher), sort_keys=False).strip()
    files = {key: model["file"] for key, model in exported["models"].items()}
    best = exported["recommended"]
    models = {**results["models"], **exported["models"]}
    notes = "\n".join(f"- {note}" for note in exported["notes"])
    return "\n".join(
        [
            f"---\n{header}\n---\n",
            f"# {name}\n",
            f"A small language model distilled from `{_named(teacher)}` with Potstill "
            f"{__version__}: "
            f"it was trained on {training_rows} examples that the teacher wrote from a set of "
            "documents, to predict both their text and the teacher's distribution over the "
            "vocabulary.\n",
            "## Files\n",
            "- `safetensors/`: for transformers, vLLM and further training",
            *(f"- `{file}`: for llama.cpp and what is built on it" for file in files.values()),
            "- `Modelfile`, `SERVING.md`: how to serve them",
            "\n## Figures\n",
            f"On held-out examples, each with its {exported['level']:.0%} bootstrap interval. "
            "The GGUF files were measured in llama.cpp, the others in PyTorch; `n` is the number "
            "of examples.\n",
            quality(models, files),
            "",
            _size(models, files),
            "\n## Checked before release\n",
            *(_parity_line(one) for one in exported["chain"] if one.get("file")),
            *(["\n## Notes\n", notes] if notes else []),
            "\n## How to run\n",
            f"Take `{best['file']}`: {best['why']}. `SERVING.md` has the lines for servers "
            "(llama.cpp, Ollama, vLLM), `Modelfile` is Ollama's.\n",
            "With llama.cpp:\n",
            f"```sh\nllama-cli -m {best['file']} --jinja -cnv\n```\n",
            "With transformers:\n",
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("safetensors")\n'
            'model = AutoModelForCausalLM.from_pretrained("safetensors")\n```\n',
            "## Limits\n",
            "The student knows the documents it was distilled on and little else. It repeats the "
            "teacher's mistakes. The figures above hold for questions like the held-out ones.\n",
        ]
    )


def _named(teacher: Reference) -> str:
    """The reference without the folders of the machine: the card is read by others."""
    return teacher.path.name if teacher.path else str(teacher)


def _header(teacher: Reference) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if teacher.kind == "pypi" and pinned(teacher.name).licence:
        header["license"] = pinned(teacher.name).licence.lower()
    if teacher.kind == "hub":
        header["base_model"] = teacher.name
    header["tags"] = ["distillation", "gguf", "potstill"]
    return header


def quality(models: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """A table of the models' figures with their intervals. files: of those that are exported."""
    known = {metric for model in models.values() for metric in model["metrics"]}
    shown = [column for column in COLUMNS if column[0] in known]
    rows = []
    for key, model in models.items():
        cells = [_figure(model["metrics"].get(metric), form) for metric, _, form in shown]
        owned = [model["metrics"][name] for name, _, _ in shown if name in model["metrics"]]
        counts = sorted({figure["n"] for figure in owned})
        rows.append([_name(key, files), *cells, ", ".join(str(n) for n in counts)])
    return table(["model", *(title for _, title, _ in shown), "n"], rows)


def _size(models: Mapping[str, Any], files: Mapping[str, str]) -> str:
    rows = [
        [
            _name(key, files),
            f"{model['parameters'] / 1e6:.1f} M",
            f"{model['disk_bytes'] / 1e6:.1f} MB",
            f"{model['peak_memory_bytes'] / 1e6:.0f} MB",
            f"{model['tokens_per_second']:.1f}",
            f"{model['time_to_first_token_s']:.3f} s",
        ]
        for key, model in models.items()
    ]
    titles = ["model", "parameters", "disk", "peak memory", "tokens/s", "time to first token"]
    return table(titles, rows)


def _figure(figure: Mapping[str, Any] | None, form: str) -> str:
    if figure is None:
        return "not measured"
    low, high = form.format(figure["low"]), form.format(figure["high"])
    return f"{form.format(figure['value'])} ({low} to {high})"


def _name(key: str, files: Mapping[str, str]) -> str:
    return f"`{files[key]}`" if key in files else NAMES.get(key, key)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _parity_line(hop: Mapping[str, Any]) -> str:
    kl, agreement, answers = hop["kl"], hop["agreement"], hop.get("f1_difference")
    change = (
        f", answer F1 {answers['value']:+.3f} ({answers['low']:+.3f} to {answers['high']:+.3f})"
        if answers
        else ""
    )
    return (
        f"- `{hop['file']}` reloaded in llama.cpp: {hop['prompts']} prompts with the same "
        f"token ids, generation stops at the end-of-turn token, KL to the PyTorch student "
        f"{kl['value']:.2g} nats a token ({kl['low']:.2g} to {kl['high']:.2g}; at most "
        f"{hop['allowance']['max_kl']:g} allowed), the same first choice at "
        f"{agreement['value']:.2%} of {hop['tokens']:.0f} tokens{change}."
    )
