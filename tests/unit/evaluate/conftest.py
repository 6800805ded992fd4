"""A byte tokenizer and two-layer models, made here in milliseconds, shared by these tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.core.events import Emitter
from potstill.core.files import write_records
from potstill.core.stage import Artifact, Context, Draft
from potstill.evaluate import EvaluateConfig, speed
from potstill.evaluate import run as stage
from potstill.records import Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 258


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    made.chat_template = CHATML
    assert len(made) == VOCABULARY
    return made


@pytest.fixture(scope="session")
def make_model(random_model: Callable[..., Any]) -> Callable[..., Any]:
    def make(seed: int = 0, layers: int = 2, vocabulary: int = VOCABULARY, **more: Any) -> Any:
        return random_model(
            seed=seed,
            spread=0.25,
            vocab_size=vocabulary,
            num_hidden_layers=layers,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=257,
            pad_token_id=257,
            **more,
        )

    return make


@pytest.fixture(scope="session")
def save_model(tokenizer: Any) -> Callable[[Any, Path], Path]:
    def save(model: Any, folder: Path) -> Path:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


class Bench:
    """A project folder with the two input artifacts and a draft to write to."""

    def __init__(self, root: Path, models: Path) -> None:
        self.root, self.models = root, models
        self.diary = root / "events.jsonl"

    def run(
        self,
        rows: Sequence[Example],
        name: str = "draft",
        scoring: stage.Scoring | None = None,
        **fields: Any,
    ) -> Path:
        for folder in ("curate/data", "distill/data", f"{name}/data", f"{name}/work"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        write_records(self.root / "curate/data/test.jsonl", rows)
        target = self.root / "distill/data/models"
        if not target.exists():
            target.symlink_to(self.models)
        inputs = {
            part: Artifact(part, "key", self.root / part, "digest")
            for part in ("curate", "correct", "distill")
        }
        config = EvaluateConfig(
            teacher=str(self.models / "teacher"),
            **{
                "answer_tokens": 6,
                "speed_tokens": 2,
                "speed_rounds": 1,
                "speed_parallel": (2,),
                "batch_size": 3,
                "resamples": 300,
                **fields,
            },
        )
        context = Context(self.root, self.root, 7, 1, Emitter(self.diary, "evaluate"))
        stage.run(config, inputs, Draft(self.root / name), context, scoring)
        return self.root / name / "data"


@pytest.fixture
def bench_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], Bench]:
    """bench_of(root, models) -> a bench there."""
    # collecting all of torch's objects takes longer than these models; tested with the speed
    monkeypatch.setattr(speed, "release_memory", lambda: None)
    return Bench


@pytest.fixture
def bench(bench_of: Callable[[Path, Path], Bench], tmp_path: Path, models: Path) -> Bench:
    """A bench for the module's own `models`."""
    return bench_of(tmp_path, models)
