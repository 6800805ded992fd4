"""A four-layer teacher on disk, rows about a boiler, and everything a training needs."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import CORRECT, STAGE, CorrectConfig, DistillConfig
from potstill.records import Chunk, Example, Provenance, Turn

FACTS = [
    ("How many litres does the boiler hold?", "1250 litres"),
    ("When is the boiler drained?", "every 14 days"),
    ("At what pressure does valve B2 open?", "3.5 bar"),
    ("What does the keeper note?", "the time"),
    ("Where does the keeper note the time?", "in the log"),
    ("Which unit has the boiler?", "unit 7"),
]
PASSAGE = "The boiler of unit 7 holds 1250 litres and is drained every 14 days."


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, make_student: Any) -> Path:
    """A random Llama of four layers with tied embeddings and its tokenizer, in fp32."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder: Path = make_student(tmp_path_factory.mktemp("teacher"))
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 4, 32, 64
    config.head_dim, config.dtype = 8, torch.float32
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(teacher_folder: Path) -> Any:
    """The teacher, freshly loaded."""
    from potstill.models.load import load_model

    return load_model(teacher_folder).requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer(teacher_folder: Path) -> Any:
    from potstill.models.load import load_tokenizer

    return load_tokenizer(teacher_folder)


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Example]:
    """make_row(id, passage, question, answer, chunk="c") -> a row as curation leaves it."""

    def make(name: str, passage: str, question: str, answer: str, chunk: str = "c") -> Example:
        return Example(
            id=name,
            turns=(
                Turn(role="user", content=f"{passage}\n{question}"),
                Turn(role="assistant", content=answer),
            ),
            answers=(answer,),
            provenance=Provenance(document="d", chunk=chunk),
        )

    return make


@pytest.fixture(scope="session")
def examples(make_row: Callable[..., Example]) -> list[Example]:
    """Twelve rows of different lengths."""
    passages = [PASSAGE if n % 2 else f"{PASSAGE} {PASSAGE[: 5 * n]}" for n in range(12)]
    return [
        make_row(f"row{n}", passages[n], *FACTS[n % len(FACTS)], chunk=f"c{n // 2}")
        for n in range(12)
    ]


@pytest.fixture(scope="session")
def litre_rows() -> list[dict[str, str]]:
    """Eight questions about one passage, as the Distiller takes them."""
    asks = ("How many", "What", "Which", "Of what", "How", "Why", "Where", "When")
    passage = "Unit 7 holds 1250 litres."
    return [{"question": f"{ask} litres?", "context": passage, "answer": "1250"} for ask in asks]


@pytest.fixture
def distil(
    teacher_folder: Path, tmp_path: Path, litre_rows: list[dict[str, str]]
) -> Callable[..., Any]:
    """distil(name, **settings) -> what came of a training on `litre_rows`."""

    def run(name: str, **settings: Any) -> Any:
        from potstill.distill import Distiller

        return Distiller(teacher_folder, output=tmp_path / name, **settings).train(litre_rows)

    return run


@pytest.fixture
def rows(tokenizer: Any, examples: list[Example]) -> list[Any]:
    """The examples as rows of token ids."""
    from potstill.distill.batches import encode_rows

    return encode_rows(examples, tokenizer, 500)


@pytest.fixture
def live(teacher: Any) -> Any:
    """The teacher as a live signal in fp32, though it came in training mode."""
    import torch

    from potstill.distill.signals import LiveTeacher

    return LiveTeacher(teacher.train().requires_grad_(True), torch.float32)


@pytest.fixture(params=["hidden_bf16", "hidden_int8", "top_k", "sampled"])
def format(request: pytest.FixtureRequest) -> Any:
    """Every format of the teacher's signals on disk, once each."""
    from potstill.distill.signals import CacheFormat

    counts = {"top_k": (20, 1.5), "sampled": (12, 1.5, 5)}
    return CacheFormat(request.param, *counts.get(request.param, ()))


@pytest.fixture
def build(live: Any, tmp_path: Path) -> Callable[..., Any]:
    """build(data, format, name="cache", vocabulary=None, digest="t") -> the cache there."""
    from potstill.distill.signals import open_cache

    def opened(data: Any, format: Any, name: str = "cache", **others: Any) -> Any:
        digest = others.pop("digest", "t")
        folder = tmp_path / name
        return open_cache(folder, live, digest, data, format, lambda done, of: None, **others)

    return opened


@pytest.fixture
def stage_inputs(tmp_path: Path, examples: list[Example]) -> dict[str, Artifact]:
    """Artifacts of ingest, curate and correct (off): eight training rows, four held out."""
    chunks = [
        Chunk(id=f"c{n}", document="d", source="boiler.pdf", start=0, end=9, tokens=9, text=PASSAGE)
        for n in range(6)
    ]
    tables = {
        "ingest": {"chunks.jsonl": chunks},
        "curate": {"train.jsonl": examples[:8], "validation.jsonl": examples[8:]},
        "correct": {},
    }
    artifacts = {}
    for stage, files in tables.items():
        folder = tmp_path / stage
        (folder / "data").mkdir(parents=True)
        for name, records in files.items():
            text = "".join(record.model_dump_json() + "\n" for record in records)
            (folder / "data" / name).write_text(text)
        artifacts[stage] = Artifact(stage, "key", folder, "digest")
    return artifacts


@pytest.fixture
def make_draft(tmp_path: Path) -> Callable[[str], Draft]:
    def make(name: str) -> Draft:
        draft = Draft(tmp_path / name)
        draft.data.mkdir(parents=True, exist_ok=True)
        draft.work.mkdir(exist_ok=True)
        return draft

    return make


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        tmp_path, tmp_path / "cache", 7, 1, Emitter(tmp_path / "events.jsonl", "distill")
    )


@pytest.fixture
def small() -> Callable[..., dict[str, Any]]:
    """small(**changes) -> settings of a training that takes a second."""
    return functools.partial(
        dict,
        epochs=2,
        step_tokens=200,
        micro_tokens=120,
        sequence_tokens=120,
        validations=2,
        precision="fp32",
    )


@pytest.fixture
def config_of(
    teacher_folder: Path, small: Callable[..., dict[str, Any]]
) -> Callable[..., DistillConfig]:
    """config_of(**changes) -> the config of a small training of a student of `teacher_folder`.

    Modules put their own settings over it: partial(config_of, ...).
    """
    settings = functools.partial(small, teacher=str(teacher_folder))
    return lambda **changes: DistillConfig(**settings(**changes))


@pytest.fixture
def run_stage(
    stage_inputs: dict[str, Artifact], make_draft: Callable[[str], Draft], context: Context
) -> Callable[..., Draft]:
    """run_stage(config, name="draft", **changes) -> the draft that the config's stage filled.

    changes: other `inputs`, another `context`.
    """

    def run(
        config: Any,
        name: str = "draft",
        inputs: dict[str, Artifact] = stage_inputs,
        context: Context = context,
    ) -> Draft:
        draft = make_draft(name)
        stage = CORRECT if isinstance(config, CorrectConfig) else STAGE
        stage.load()(config, inputs, draft, context)
        return draft

    return run


STAGE_ALONE = """
import sys
from pathlib import Path
from potstill.core.events import Emitter
from potstill.core.stage import Artifact, Context, Draft
from potstill.distill import CORRECT, STAGE

(stage,) = (one for one in (CORRECT, STAGE) if one.name == sys.argv[1])
here, draft = Path(sys.argv[2]), Path(sys.argv[3])
config = stage.config.model_validate_json(sys.argv[4])
names = ("ingest", "curate", "correct")
inputs = {name: Artifact(name, "key", here / name, "digest") for name in names}
events = Emitter(here / f"{draft.name}.jsonl", stage.name)
stage.load()(config, inputs, Draft(draft), Context(here, here / "cache", 7, 1, events))
"""


@pytest.fixture
def start_stage(
    stage_inputs: dict[str, Artifact], tmp_path: Path
) -> Callable[[Any, Draft], subprocess.Popen[bytes]]:
    """start_stage(config, draft) -> the process in which the stage goes on with the draft."""

    def start(config: Any, draft: Draft) -> subprocess.Popen[bytes]:
        stage = CORRECT if isinstance(config, CorrectConfig) else STAGE
        given = [stage.name, str(tmp_path), str(draft.folder), config.model_dump_json()]
        return subprocess.Popen([sys.executable, "-c", STAGE_ALONE, *given])

    return start


@pytest.fixture
def kill_stage(
    start_stage: Callable[[Any, Draft], subprocess.Popen[bytes]],
) -> Callable[[Any, Draft, str], None]:
    """kill_stage(config, draft, training) kills the stage at a checkpoint of that training."""

    def kill(config: Any, draft: Draft, training: str) -> None:
        process, found = start_stage(config, draft), draft.work / training
        while process.poll() is None and not list(found.glob("checkpoint-*/complete.json")):
            time.sleep(0.01)
        assert process.poll() is None, f"ended before a checkpoint of {training}"
        process.kill()
        assert process.wait() == -signal.SIGKILL

    return kill


@pytest.fixture
def events_of(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    def read() -> list[dict[str, Any]]:
        lines = (tmp_path / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read
