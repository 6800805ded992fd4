"""A stage on two processes: the result of one, through kills, and errors that stay clear."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.core.files import digests_of
from potstill.core.keys import stage_key
from potstill.core.stage import Context, Draft
from potstill.distill import STAGE, CorrectConfig, DistillConfig, launch
from potstill.distill.launch import processes_of
from potstill.distill.ranks import joined
from potstill.errors import TrainingError
from potstill.models.load import load_model

Configs = Callable[..., DistillConfig]
Run = Callable[..., Draft]
Events = Callable[[], list[dict[str, Any]]]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_model(folder).state_dict()
    return found


def assert_alike(one: Draft, other: Draft, rounding: float = 1e-4) -> None:
    """The same curves within rounding, the same files, weights within a step of bf16."""
    both = [json.loads((draft.data / "history.json").read_text()) for draft in (one, other)]
    for name in ("distilled", "finetuned"):
        for table in ("steps", "validation"):
            curves, expected = (
                [
                    {key: value for key, value in row.items() if "grad_norm_" not in key}
                    for row in found[name][table]
                ]
                for found in both
            )
            assert len(curves) == len(expected) > 0
            for row, known in zip(curves, expected, strict=True):
                assert row == pytest.approx(known, rel=rounding, abs=1e-7)
    files = [
        {name for name in digests_of(draft.data) if "tensorboard" not in name}
        for draft in (one, other)
    ]
    assert files[0] == files[1]
    trained, known = (weights_of(draft.data / "models" / "distilled") for draft in (one, other))
    for name, tensor in known.items():
        difference = (trained[name].double() - tensor.double()).norm() / tensor.double().norm()
        assert float(difference) < 2**-8, name
    told = [json.loads((draft.data / "training.json").read_text()) for draft in (one, other)]
    assert told[0] == told[1]


IN_PARTS: dict[str, dict[str, Any]] = {
    "fsdp": {"sharding": "fsdp"},
    "zero 2": {"sharding": "deepspeed", "deepspeed": {"offload_optimizer": True}},
    "zero 3": {"sharding": "deepspeed", "deepspeed": {"zero_stage": 3}},
}


@pytest.mark.whole
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(parts, id=name, marks=[pytest.mark.slow] if name == "zero 2" else [])
        for name, parts in IN_PARTS.items()
    ],
)
def test_a_stage_of_two_processes_that_is_killed_ends_as_that_of_one(
    config_of: Configs,
    run_stage: Run,
    events_of: Events,
    tmp_path: Path,
    parts: dict[str, Any],
) -> None:
    """With a student in parts, so that parts go on from what is kept whole."""
    settings: dict[str, Any] = {"checkpoint_minutes": 1e-6, "signal": "hidden_bf16"}
    killed: list[int] = []
    work = tmp_path / "pair" / "work" / "distilled"

    def kill_one() -> None:
        """The second process, once the first training has left a checkpoint."""
        until = time.monotonic() + 200
        while not killed and time.monotonic() < until:
            if list(work.glob("checkpoint-*/complete.json")):
                for process in processes_of_job(tmp_path / "pair"):
                    if rank_of(process) == "1":
                        os.kill(process, signal.SIGKILL)
                        killed.append(process)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    config = config_of(**settings, **parts, processes=2, restarts=2)
    pair = run_stage(config, "pair")
    killer.join()
    assert killed
    assert_alike(pair, run_stage(config_of(**settings), "alone"))
    said = [event["message"] for event in events_of() if event["kind"] == "warning"]
    expected = (
        "Process 1 of the 2 that train was killed by signal 9; all 2 go on from the last "
        "checkpoint (restart 1 of 2)."
    )
    assert said.count(expected) == 1
    assert not (pair.work / launch.FOLDER).exists()
    assert not processes_of_job(tmp_path / "pair")


@pytest.mark.whole
@pytest.mark.parametrize("sharding", ["none", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_processes_end_with_their_stage_and_one_goes_on_where_two_were(
    config_of: Configs,
    run_stage: Run,
    make_draft: Callable[[str], Draft],
    kill_stage: Callable[[Any, Draft, str], None],
    tmp_path: Path,
    sharding: str,
) -> None:
    settings: dict[str, Any] = {"checkpoint_minutes": 1e-6}
    draft = make_draft("killed")
    kill_stage(config_of(**settings, processes=2, sharding=sharding), draft, "distilled")
    until = time.monotonic() + 20
    while processes_of_job(draft.folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes_of_job(draft.folder)
    # They look for their parent twice a second: so small a training may end in between.
    checkpoints = (draft.work / "distilled").glob("checkpoint-*/complete.json")
    assert list(checkpoints) or (draft.work / "distilled.json").exists()
    assert_alike(run_stage(config_of(**settings), "killed"), run_stage(config_of(), "alone"))


OWN_STAGE = """
import os
from pathlib import Path

from potstill.distill.ranks import Ranks
from potstill.errors import TrainingError


def mistaken(config, inputs, draft, context):
    if Ranks.here().number == 1:
        raise TrainingError("The rows are wrong.", "Mend them.")
    Ranks.here().wait()


def dying(config, inputs, draft, context):
    mark = Path(draft.work) / f"tries-{Ranks.here().number}"
    mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
    Ranks.here().wait()
    if Ranks.here().number == 1:
        os._exit(3)
    Ranks.here().wait()
"""


@pytest.mark.whole
def test_what_the_user_must_mend_is_not_tried_again_and_dying_is_bounded(
    config_of: Configs,
    make_draft: Callable[[str], Draft],
    context: Context,
    events_of: Events,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own_stage.py").write_text(OWN_STAGE)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    config, draft = config_of(processes=2, restarts=1), make_draft("own")
    with pytest.raises(TrainingError, match="The rows are wrong") as told:
        launch.spread("own_stage:mistaken", config, {}, draft, context)
    assert told.value.hint == "Mend them."
    assert [one["kind"] for one in events_of()] == ["metric"]  # no restart
    with pytest.raises(TrainingError, match=r"Process 1 of the 2 .* ended with code 3, 2 times"):
        launch.spread("own_stage:dying", config, {}, draft, context)
    assert [(draft.work / f"tries-{rank}").read_text() for rank in range(2)] == ["xx", "xx"]


@pytest.mark.whole
def test_a_correction_on_two_processes_is_that_of_one(
    teacher_folder: Path, small: Callable[..., dict[str, Any]], run_stage: Run
) -> None:
    settings = small(teacher=str(teacher_folder), method="full", learning_rate=5e-3)
    found = [
        json.loads((run_stage(config, name).data / "correction.json").read_text())
        for name, config in (
            ("one", CorrectConfig(**settings)),
            ("two", CorrectConfig(**settings, processes=2)),
        )
    ]
    for name in ("loss_before", "loss_after", "kl_to_the_original"):
        assert found[1][name] == pytest.approx(found[0][name], rel=2e-3), name
    assert found[1]["kept"] == found[0]["kept"]
    assert found[1]["steps"] == found[0]["steps"] > 1


OWN_SCRIPT = """
import json
import os
import sys
from pathlib import Path

from potstill.distill import Distiller
from potstill.distill.zero import ZeroSharded

teacher, output, rows = sys.argv[1:]
mark = Path(f"{output}.process-{os.environ.get('RANK', 'alone')}")
stages = []
started = ZeroSharded.start


def start(sharded, optimizer):
    stages.append(str(sharded.stage))
    return started(sharded, optimizer)


ZeroSharded.start = start
found = Distiller(
    teacher,
    {"parameters_ratio": 0.8, "steps": 2},
    output=output,
    correct={"learning_rate": 5e-3},
    processes="auto",
    epochs=2,
    step_tokens=200,
    micro_tokens=120,
    sequence_tokens=120,
    precision="fp32",
    validations=2,
).train(json.loads(rows))
assert found.model is not None
mark.write_text(" ".join(stages))
"""


TWO = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate launch": [
        # Of all its ways on one machine this alone starts several processes; there need be no GPU.
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
        *("--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),
    ],
    "accelerate launch with DeepSpeed": [
        *("-m", "accelerate.commands.launch", "--use_deepspeed", "--zero_stage", "3"),
        *("--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0"),
    ],
}


@pytest.mark.whole
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(way, id=name, marks=[pytest.mark.slow] if name == "accelerate launch" else [])
        for name, way in TWO.items()
    ],
)
def test_a_script_in_two_processes_ends_as_in_one(
    launcher: list[str], teacher_folder: Path, litre_rows: list[dict[str, str]], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(OWN_SCRIPT)
    found = []
    for name, how in (("one", []), ("two", launcher)):
        output = tmp_path / name
        given = [str(script), str(teacher_folder), str(output), json.dumps(litre_rows)]
        subprocess.run([sys.executable, *how, *given], check=True, timeout=280)
        assert not (output / "work").exists()
        found.append(json.loads((output / "trained.json").read_text()))
    assert sorted(one.name for one in tmp_path.glob("*.process-*")) == [
        "one.process-alone", "two.process-0", "two.process-1",
    ]  # fmt: skip
    done = [(tmp_path / f"two.process-{number}").read_text() for number in range(2)]
    trainings = 3  # the correction, the student, and the fine-tuned one beside it
    assert done == [" ".join(["3"] * trainings) if "--use_deepspeed" in launcher else ""] * 2
    files = [{str(one) for one in digests_of(tmp_path / name)} for name in ("one", "two")]
    assert {one for one in files[0] ^ files[1] if "tensorboard" not in one} == set()
    assert found[0]["steps"] == found[1]["steps"] > 1
    for table in ("steps", "validation"):
        for row, known in zip(found[1]["history"][table], found[0]["history"][table], strict=True):
            # The corrected teacher and the first cut are kept in bf16.
            assert row["loss"] == pytest.approx(known["loss"], rel=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="a machine with two NVIDIA GPUs runs it")
@pytest.mark.cuda
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_gpus_train_as_one(config_of: Configs, run_stage: Run, sharding: str) -> None:
    assert_alike(
        run_stage(config_of(processes=2, sharding=sharding), "pair"),
        run_stage(config_of(), "alone"),
        rounding=1e-3,
    )


def test_processes_and_shards_that_cannot_be_are_refused(config_of: Configs) -> None:
    own = {"share": 0.5}
    for changes, words in (
        ({"processes": 2, "on_policy": own}, "generated by one process"),
        ({"processes": 0}, "greater than or equal to 1"),
        ({"sharding": "fsdp", "adapter": "lora"}, "adapters, hidden and attention"),
        ({"sharding": "fsdp", "compile": True}, "neither with compile"),
    ):
        with pytest.raises(ValidationError, match=words):
            config_of(**changes)
    assert processes_of(config_of(processes="auto", on_policy=own)) == 1


def test_auto_is_a_process_a_gpu_and_memory_is_counted_for_each(
    config_of: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(processes="auto")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch, "gpus", lambda: [])
    assert (processes_of(config), launch.held_by(config)) == (1, 1)
    assert launch.held_by(config_of(processes=3)) == 3  # they share the computer's memory
    monkeypatch.setattr(launch, "gpus", lambda: ["a", "b", "c"])
    assert (processes_of(config), launch.held_by(config)) == (3, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert processes_of(config) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes_of(config) == 1


def test_a_run_under_torchrun_is_refused_and_so_is_an_accelerate_that_shards(
    config_of: Configs, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="a run starts its own") as told:
        run_stage(config_of())
    assert "distill.processes" in told.value.hint
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="told to use FSDP"), joined():
        pass


def test_what_processes_there_are_is_not_part_of_the_result(config_of: Configs) -> None:
    keys = [
        stage_key(STAGE, config, {}, {}, 7).value
        for config in (config_of(), config_of(processes=2, sharding="fsdp", restarts=0))
    ]
    assert keys[0] == keys[1]


def processes_of_job(draft: Path) -> list[int]:
    """The processes whose job lies in that draft."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"potstill.distill.rank" in words and str(draft).encode() in b" ".join(words):
            found.append(int(folder.name))
    return found


def rank_of(process: int) -> str:
    try:
        said = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((one[5:].decode() for one in said if one.startswith(b"RANK=")), "")
