"""Two real processes train as one does: gradients, loss, figures, held-out rows, whole runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.core.files import digests_of
from potstill.distill.batches import encode_rows
from potstill.distill.ranks import Ranks
from potstill.records import Example

pytestmark = pytest.mark.whole

SCRIPT = '''
"""One process of a training: argv = the teacher, the rows, where to leave what it has found."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from potstill.core.events import Emitter
from potstill.distill.attention import use
from potstill.distill.batches import Row, RowSet
from potstill.distill.config import DistillConfig
from potstill.distill.material import Material
from potstill.distill.objective import Objective
from potstill.distill.ranks import Ranks, _leave
from potstill.distill.sharded_trainer import ShardedTrainer, ZeroTrainer
from potstill.distill.sharding import Sharded, whole_norm
from potstill.distill import recording
from potstill.distill.signals import CacheFormat, LiveTeacher, open_cache
from potstill.distill.train import train_student
from potstill.distill.steps import Steps
from potstill.distill.trainer import DistillTrainer
from potstill.distill.zero import ZeroSharded
from potstill.distill.zero_settings import deepspeed_for
from potstill.models.load import load_model
from potstill.models.surgery import drop_layers
from deepspeed.utils import safe_get_full_grad

folder, rows_file, out = map(Path, sys.argv[1:])
rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
torch.set_num_threads(1)
linear = torch.nn.functional.linear


def join(name):
    store = "file://" + str(out / name)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)


if count > 1:
    join("store")
assert Ranks.here() == Ranks(rank, count)
rows = [Row(name, tuple(ids), start) for name, ids, start in json.loads(rows_file.read_text())]
objective = Objective(
    kd_weight=0.8,
    ce_weight=0.3,
    divergence={"forward_kl": 0.6, "jsd": 0.4},
    temperature=2.0,
    hidden={"mse_weight": 0.05, "cosine_weight": 0.5, "projection": "always"},
    attention={"weight": 0.7, "layers": "last-2"},
)
teacher = load_model(folder).requires_grad_(False)
use(teacher)
signal = LiveTeacher(teacher, torch.float32)
words = signal.output.words


def new_student():
    student = drop_layers(load_model(folder), [1]).requires_grad_(True)
    use(student)
    return student


def zero_settings(stage):
    config = DistillConfig(
        teacher="t", sharding="deepspeed", deepspeed={"zero_stage": stage}
    )
    settings = deepspeed_for(config)
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # all are in parts
    return settings


def one_step(what, objective=objective, parts=None):
    student = new_student()
    sharded = parts(student, Ranks.here()) if parts and count > 1 else None
    data = RowSet.apart(rows[:1] if what == "row" else rows, True)
    families = list(data.families)
    micros = [families] if what in ("row", "whole") else [families[n : n + 2] for n in (0, 2, 4, 6)]
    steps = Steps(data, [micros], objective.active, 0, even=sharded is not None)
    torch.manual_seed(2)  # of the projection
    made = partial(DistillTrainer, student)
    zero = isinstance(sharded, ZeroSharded)
    if sharded is not None:
        made = partial(ZeroTrainer if zero else ShardedTrainer, sharded)
    trainer = made(
        signal,
        signal,
        objective,
        steps,
        RowSet.apart(rows, True),
        vocabulary=words,
        dtype=torch.float32,
        config=DistillConfig(teacher="t", term_gradients=False),
        arguments=TrainingArguments(
            str(out / f"trainer{rank}"),
            max_steps=1,
            learning_rate=0.0,  # DeepSpeed finds the norm in its step
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[],
    )
    before = trainer.held_out()
    if zero:
        trainer.create_optimizer()
    loss = trainer.training_step(trainer.model, steps[0])
    named = list(student.named_parameters())
    if trainer.loss.projection is not None:
        named += trainer.loss.projection.named_parameters()
    own = sum(getattr(one, "to_local", lambda one=one: one)().numel() for _, one in named)
    if zero:
        gradients = {name: safe_get_full_grad(one).clone() for name, one in named}
        if sharded.stage == 3:
            own = sum(one.ds_tensor.numel() for _, one in named)
    else:
        gradients = {name: whole_norm(one.grad).clone() for name, one in named}
    norm = float(trainer._get_grad_norm(student, trainer._clip_grad_norm(student)))
    return {
        "loss": float(loss),
        "figures": trainer.figures,
        "gradients": gradients,
        "norm": norm,
        "own": own,
        "held_out": trainer.held_out(),
        "before": before,
        "batches": len(steps[0].batches),
        "fillers": len(steps[0].fillers),
        "whole": student.state_dict() if sharded is None else sharded.whole().state_dict(),
    }


def whole_run():
    data = RowSet.apart(rows[:6], True)
    families = list(data.families)
    plan = [[[families[0]], families[1:3]], [families[3:5], [families[5]]], [families[:1]]]
    material = Material(
        None, data, RowSet.apart(rows[6:], True), plan, words, torch.float32, signal, signal
    )
    config = DistillConfig(
        teacher="t", learning_rate=1e-3, validations=3, patience=0, clip_norm=0.5
    )
    plain = Objective(kd_weight=1.0, ce_weight=0.3)
    trained, result = train_student(
        new_student(),
        material,
        plain,
        config=config,
        seed=1,
        name="distilled",
        last_step=len(plan),
        patience=0,
        work=out / "work",
        tensorboard=out / f"board{rank}",
        events=Emitter(None),
    )
    return {"weights": trained.state_dict(), "history": result.history, "steps": result.steps}


plain = Objective(kd_weight=0.8, ce_weight=0.3, temperature=2.0)
found = {what: one_step(what) for what in ("split", "whole", "row")}
ways = {"fsdp": Sharded} | {
    f"zero {stage}": partial(ZeroSharded, settings=zero_settings(stage)) for stage in (1, 2, 3)
}
found |= {
    f"{way}: {what}": one_step(what, plain, parts)
    for way, parts in ways.items()
    for what in ("split", "whole", "row")
}
if count > 1:
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    assert FWD_MODULE_STACK == []  # nothing of a training is held on to
    assert torch.nn.functional.linear is linear
found["run"] = whole_run()
recording.CACHE_BATCH_TOKENS = 24  # several blocks
cache = RowSet.apart(rows, True)
found["blocks"] = len(recording.blocks_of(cache.sizes))
opened = open_cache(
    out / "cache", signal, "t", cache, CacheFormat("hidden_bf16"), lambda done, of: None
)
found["cache"] = len(opened.shards)
if count > 1:  # another training of the same script
    dist.barrier()
    _leave()
    join("again")
found["zero 2: once more"] = one_step("split", plain, ways["zero 2"])
torch.save(found, out / f"found{rank}.pt")
if count > 1:
    dist.barrier()
    _leave()
'''


@pytest.fixture(scope="module")
def found(
    teacher_folder: Path,
    tokenizer: Any,
    examples: list[Example],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a process alone has found, and what each of two has; they run at the same time."""
    folder = tmp_path_factory.mktemp("ranks")
    script, data = folder / "process.py", folder / "rows.json"
    script.write_text(SCRIPT)
    rows = encode_rows(examples, tokenizer, 500)[:8]
    data.write_text(json.dumps([[row.id, row.ids, row.answer_start] for row in rows]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        out = folder / str(count)
        out.mkdir(exist_ok=True)
        launched = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), str(teacher_folder), str(data), str(out)],
                env=os.environ | own | (launched if count > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, words in zip(processes, said, strict=True):
        assert process.returncode == 0, words[-3000:]
    files = [digests_of(folder / count / "cache") for count in "12"]
    assert files[0] == files[1]  # the same bytes, and nothing of the parts is left
    assert set(map(str, files[0])) >= {"index.json", "key.json", "records.bin", "shard-00000.bin"}
    pair = [torch.load(folder / "2" / f"found{rank}.pt") for rank in range(2)]
    return torch.load(folder / "1" / "found0.pt"), pair


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    largest = max(float(tensor.norm()) for tensor in other.values())
    for name, tensor in one.items():
        # The first layer is the teacher's own, so its map's gradient is nothing but rounding.
        size = max(float(other[name].norm()), 1e-6 * largest)
        error = float((tensor - other[name]).norm()) / size
        assert error < 1e-5, f"{name} differs by {error:.1e}"


@pytest.mark.parametrize(
    ("what", "parts"),
    [("split", [2, 2]), ("whole", [2, 1]), ("row", [1, 0])],
    ids=["four micro-batches", "one micro-batch of eight rows", "one row"],
)
def test_two_processes_have_the_gradient_of_one(
    found: tuple[dict[str, Any], list[dict[str, Any]]], what: str, parts: list[int]
) -> None:
    alone, pair = found[0][what], [one[what] for one in found[1]]
    assert [one["batches"] for one in pair] == parts
    for one in pair:
        assert_same(one["gradients"], alone["gradients"])
        assert one["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert one["figures"] == pytest.approx(alone["figures"], rel=1e-5)
        assert one["held_out"] == pytest.approx(alone["held_out"], rel=1e-5)
    assert set(alone["figures"]) >= {"kd", "ce", "hidden_mse", "hidden_cosine", "attention"}
    assert alone["loss"] > 0


@pytest.mark.parametrize("way", ["fsdp", "zero 1", "zero 2", "zero 3"])
@pytest.mark.parametrize(("what", "parts"), [("split", [2, 2]), ("whole", [2, 1]), ("row", [1, 0])])
def test_a_student_in_parts_has_the_gradient_of_a_whole_one(
    found: tuple[dict[str, Any], list[dict[str, Any]]], what: str, parts: list[int], way: str
) -> None:
    alone, pair = found[0][f"{way}: {what}"], [one[f"{way}: {what}"] for one in found[1]]
    assert [one["batches"] for one in pair] == parts
    assert [one["batches"] + one["fillers"] for one in pair] == [max(parts)] * 2
    for one in pair:
        assert_same(one["gradients"], alone["gradients"])
        for figure in ("loss", "norm", "figures", "held_out", "before"):
            assert one[figure] == pytest.approx(alone[figure], rel=1e-5), figure
        if way in ("fsdp", "zero 3"):
            assert one["own"] < 0.6 * alone["own"]  # of the weights, and of what goes with them
        assert one["whole"].keys() == alone["whole"].keys()
        for name, weight in alone["whole"].items():
            assert torch.equal(one["whole"][name], weight), name
    assert alone["loss"] > 0


def test_a_second_group_of_one_script_trains_with_deepspeed_again(
    found: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    for one, first in zip(found[1], (pair["zero 2: split"] for pair in found[1]), strict=True):
        assert_same(one["zero 2: once more"]["gradients"], first["gradients"])


def test_a_whole_run_of_two_processes_ends_where_that_of_one_does(
    found: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    alone, pair = found[0]["run"], [one["run"] for one in found[1]]
    for one in pair:
        assert one["steps"] == alone["steps"] == 3
        for table in ("steps", "validation"):
            curves, expected = (curves_of(run["history"][table]) for run in (one, alone))
            assert len(curves) == len(expected) > 0
            for row, other in zip(curves, expected, strict=True):
                assert row == pytest.approx(other, rel=1e-4)
        for name, weight in alone["weights"].items():
            error = float((one["weights"][name] - weight).norm() / weight.norm())
            assert error < 1e-5, f"{name} differs by {error:.1e}"
    for name, weight in pair[0]["weights"].items():
        assert torch.equal(weight, pair[1]["weights"][name]), name


def curves_of(table: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without single terms' gradient norms, which each process measures on rows of its own."""
    return [
        {name: value for name, value in row.items() if not name.startswith("grad_norm_")}
        for row in table
    ]


def test_each_process_has_the_teachers_signals_that_both_have_written(
    found: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    for one in (found[0], *found[1]):  # the files themselves are compared where they are
        assert one["cache"] == 8
        assert one["blocks"] > 2


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("items", [0, 1, 4, 7])
def test_shares_are_the_whole_and_nothing_twice(count: int, items: int) -> None:
    shares = [list(Ranks(number, count).share(range(items))) for number in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_changes_nothing_and_needs_no_group() -> None:
    ranks = Ranks.here()
    assert ranks == Ranks(0, 1)
    parameter = torch.nn.Parameter(torch.ones(3))
    ranks.add_up([parameter])
    assert parameter.grad is None
    assert ranks.sums({"kd": 2.5}) == {"kd": 2.5}
    assert float(ranks.total(torch.tensor(3.0))) == 3.0
    ranks.wait()
