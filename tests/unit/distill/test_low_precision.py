"""Adapters of every kind in a training, kept beside its student; teachers in fewer bits."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.events import Emitter
from potstill.core.keys import stage_key
from potstill.core.stage import Draft
from potstill.distill import STAGE, Distiller
from potstill.distill.batches import encode_rows
from potstill.distill.config import DistillConfig
from potstill.distill.distiller import Distilled
from potstill.distill.precision import in_precision, mean_kl
from potstill.errors import MissingExtraError, ModelError
from potstill.models import quantised
from potstill.models.adapter_files import read_adapter
from potstill.models.adapter_sets import AdapterSet
from potstill.models.load import load_model

Train = Callable[..., Distilled]


@pytest.fixture
def train(distil: Train) -> Train:
    """train(name, **settings) -> what came of it."""

    def run(name: str, **settings: Any) -> Distilled:
        known: dict[str, Any] = {
            "epochs": 4,
            "step_tokens": 120,
            "precision": "fp32",
            "signal": "live",
            "learning_rate": 1e-2,
            "student": {
                "drop_layers": 1,
                "calibration_tokens": 64,
                "method": "influence",
                "refit": False,  # there must be something left to learn
            },
            "ce_weight": 0.01,
            "validations": 2,
        }
        return distil(name, **(known | settings))

    return run


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def kl(distilled: Distilled, at: int) -> float:
    return distilled.history["validation"][at]["kl"]


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": "dora"},
        {
            "adapter": "lora",
            "lora": {"rank": 4, "alpha": 4.0, "rank_stabilised": True, "init": "orthogonal"},
        },
        {"adapter": "qlora"},
        {"adapter": "qlora", "precision": "bf16", "gradient_checkpointing": True},
        {"adapter": "qlora", "batching": "buckets", "share_beginnings": False},
        {"adapter": "qlora", "hidden": {"mse_weight": 0.01}, "attention": {"weight": 0.1}},
    ],
    ids=["dora", "stabilised", "qlora", "bf16 and checkpointed", "buckets", "layers"],
)
def test_an_adapter_of_any_kind_learns_what_the_teacher_says(
    train: Train, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = train("out", **settings)
    assert kl(found, -1) < kl(found, 0)
    layer = found.model.model.layers[0].mlp.up_proj
    assert type(layer) is torch.nn.Linear
    assert not (tmp_path / "out" / "adapter").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="a machine with g++ runs it")
@pytest.mark.filterwarnings("default:.*script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("default:.*Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_qlora_student_learns_the_same(train: Train) -> None:
    plain, compiled = (train(str(c), adapter="qlora", compile=c, epochs=2) for c in (False, True))
    assert kl(compiled, -1) == pytest.approx(kl(plain, -1), rel=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a machine with an NVIDIA GPU runs it")
def test_a_qlora_student_learns_with_paged_moments(train: Train) -> None:
    found = train("paged", adapter="qlora", optimizer="paged_adamw", epochs=2)
    assert kl(found, -1) < kl(found, 0)


def test_an_adapter_is_kept_and_merges_into_the_undistilled_student(
    config_of: Callable[..., DistillConfig], run_stage: Callable[..., Draft], teacher_folder: Path
) -> None:
    config = config_of(
        student={"drop_layers": 1, "calibration_tokens": 64, "method": "influence"},
        micro_tokens=4096,
        learning_rate=1e-2,
        ce_weight=0.01,
        validations=1,
        adapter="qlora",
        keep_adapter=True,
        teacher_precision="8bit",
    )
    draft = run_stage(config)
    base, folder = draft.data / "models" / "undistilled", draft.data / "adapters" / "distilled"
    assert {one.name for one in folder.parent.iterdir()} == {"distilled"}
    adapter = read_adapter(folder)
    assert adapter.base["kind"] == "qlora"
    assert adapter.base["base"] == "models/undistilled of the same result"
    assert "base_model_name_or_path" not in {k for k, v in adapter.config.items() if v == "t"}
    merged = AdapterSet(base, {"distilled": folder}).merged({"distilled": 1.0})
    found = load_model(draft.data / "models" / "distilled")
    name = "model.layers.0.mlp.up_proj.weight"
    ours, theirs = merged.state_dict()[name], found.state_dict()[name]
    assert (ours - theirs).norm() < 0.05 * theirs.norm()  # both models are kept in bf16
    start = load_model(base).state_dict()[name]
    assert (ours - theirs).norm() < 0.2 * (theirs - start).norm()
    sizes = json.loads((draft.data / "surgery.json").read_text())["parameters"]
    assert sizes["teacher"] == sum(one.numel() for one in load_model(teacher_folder).parameters())
    with pytest.raises(ModelError, match="another base"):
        AdapterSet(teacher_folder, {"distilled": folder})


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_a_teacher_in_fewer_bits_teaches_and_says_what_it_lost(
    train: Train, tmp_path: Path, precision: str
) -> None:
    found = train("out", teacher_precision=precision)  # the probe compares with it in fp32
    assert kl(found, -1) < kl(found, 0)
    events = [json.loads(line) for line in lines(tmp_path / "out" / "events.jsonl")]
    (lost,) = [one["value"] for one in events if one.get("name") == "teacher_kl"]
    assert 0 < lost < {"8bit": 0.1, "4bit": 10.0}[precision]
    full = train("full")
    assert found.history["steps"][0]["kd"] != full.history["steps"][0]["kd"]
    events = [json.loads(line) for line in lines(tmp_path / "full" / "events.jsonl")]
    assert not [one for one in events if one.get("name") == "teacher_kl"]


def test_what_a_teacher_lost_is_the_kl_to_its_dequantised_self(
    teacher_folder: Path, tokenizer: Any, examples: list[Any], tmp_path: Path
) -> None:
    rows = encode_rows(examples[:2], tokenizer, 40)
    config = DistillConfig(teacher=str(teacher_folder), teacher_precision="4bit")
    path = tmp_path / "events.jsonl"
    cpu, events = torch.device("cpu"), Emitter(path, "distill")
    teacher = in_precision(teacher_folder, config, rows, torch.float32, cpu, events)
    assert quantised.is_quantised(teacher)
    full = load_model(teacher_folder).double()
    lower = quantised.dequantise(teacher).double()
    sums, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.ids[:65]])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, :-1].softmax(-1) for model in (full, lower))
        sums += float((p * (p / q).log()).sum())
        count += len(p)
    (event,) = [json.loads(line) for line in lines(path)]
    assert event["value"] == pytest.approx(sums / count, rel=1e-3)
    assert mean_kl([p.log()], [p.log()]) == 0


def test_precision_and_adapter_are_part_of_the_key() -> None:
    keys = {
        stage_key(STAGE, DistillConfig(teacher="t", **settings), {}, {}, 0).value
        for settings in (
            {},
            {"teacher_precision": "8bit"},
            {"teacher_precision": "4bit"},
            {"adapter": "lora"},
            {"adapter": "dora"},
            {"adapter": "lora", "keep_adapter": True},
            {"adapter": "lora", "lora": {"rank_stabilised": True}},
        )
    }
    assert len(keys) == 7


def test_settings_that_do_not_go_together_are_refused() -> None:
    for settings, words in (
        ({"keep_adapter": True}, "keep_adapter needs an adapter"),
        ({"adapter": "qlora", "lora": {"init": "orthogonal"}}, "orthogonal does not go"),
        ({"adapter": "lora", "lora": {"init": "orthogonal", "rank": 3}}, "even rank"),
        ({"adapter": "lora", "lora": {"target_modules": []}}, "names no layer"),
    ):
        with pytest.raises(ValueError, match=words):
            DistillConfig(teacher="t", **settings)


@pytest.mark.parametrize("settings", [{"teacher_precision": "4bit"}, {"adapter": "qlora"}])
def test_a_plan_says_that_bitsandbytes_is_missing(
    teacher_folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    real = importlib.util.find_spec
    config = DistillConfig(teacher=str(teacher_folder), **settings)
    assert STAGE.facts(config, teacher_folder)["teacher"]
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "bitsandbytes" else real(name, *more),
    )
    with pytest.raises(MissingExtraError, match=r"bitsandbytes.*potstill\[quantised\]"):
        STAGE.facts(config, teacher_folder)


@pytest.mark.parametrize("student", [None, "given"])
def test_unknown_layers_are_named_before_the_teacher_is_asked(
    teacher_folder: Path,
    tmp_path: Path,
    litre_rows: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    student: str | None,
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("time was spent")

    monkeypatch.setattr("potstill.distill.student.cut.cut", never)
    monkeypatch.setattr("potstill.distill.preflight.check_models", never)
    distiller = Distiller(
        teacher_folder,
        load_model(teacher_folder) if student else None,
        output=tmp_path / "out",
        adapter="lora",
        lora={"target_modules": ["quary_proj"]},
    )
    with pytest.raises(ModelError, match=r"quary_proj.*Did you mean .*proj"):
        distiller.train(litre_rows)


def test_sharing_is_left_out_where_any_adapter_drops(train: Train) -> None:
    found = train("out", adapter="dora", lora={"dropout": 0.2}, epochs=1)
    assert found.trained.steps > 0


def test_the_base_of_an_adapter_is_where_it_says(
    train: Train, make_student: Any, tmp_path: Path
) -> None:
    cut = train("cut", adapter="lora", keep_adapter=True, epochs=1)
    folder = tmp_path / "cut" / "adapter"
    assert read_adapter(folder).base["base"] == "undistilled beside this folder"
    merged = AdapterSet(folder.parent / "undistilled", {"a": folder}).merged({"a": 1.0})
    name = "model.layers.0.mlp.up_proj.weight"
    found = cut.model.state_dict()[name]
    torch.testing.assert_close(merged.state_dict()[name], found, rtol=1e-5, atol=1e-6)
    given = make_student(tmp_path / "given")
    train("named", adapter="lora", keep_adapter=True, epochs=1, student={"model": str(given)})
    assert read_adapter(tmp_path / "named" / "adapter").base["base"] == str(given)
    assert not (tmp_path / "named" / "undistilled").exists()
    assert not train("plain", epochs=1).folder.with_name("undistilled").exists()
