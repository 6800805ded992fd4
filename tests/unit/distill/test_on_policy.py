"""On-policy training in a run: the files of its stage, its key, its estimate, replay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from potstill.core.files import read_json, read_records
from potstill.core.keys import stage_key
from potstill.core.stage import Context, Draft
from potstill.distill import STAGE, DistillConfig, StudentConfig
from potstill.distill.advice import advise
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.plan import estimate, facts
from potstill.distill.rollouts import Rollout
from potstill.errors import InputError

Configs = Callable[..., DistillConfig]
OWN = {"share": 0.6, "max_new_tokens": 10, "refresh_steps": 2, "allow_endless": True}
REPLAYED = {name: value for name, value in OWN.items() if name != "max_new_tokens"}


@pytest.fixture
def config_of(config_of: Configs) -> Configs:
    return partial(
        config_of,
        student=StudentConfig(drop_layers=1, calibration_tokens=64),
        micro_tokens=200,
        learning_rate=3e-3,
        patience=0,
        signal="live",
    )


def weights(draft: Draft, name: str) -> str:
    path = draft.data / "models" / name / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_keeps_its_rollouts_replays_them_and_leaves_the_comparison_alone(
    config_of: Configs, run_stage: Callable[..., Draft], context: Context
) -> None:
    plain = run_stage(config_of(), "plain")
    own = run_stage(config_of(on_policy=OWN), "own")
    assert weights(plain, "finetuned") == weights(own, "finetuned")
    assert weights(plain, "distilled") != weights(own, "distilled")
    told = read_json(own.data / "training.json")
    kept = list(read_records(own.data / "rollouts.jsonl", Rollout))
    assert told["rollouts"] == len(kept) > 0
    assert told["rollout_truncated"] == sum(one.truncated for one in kept) / len(kept)
    assert told["signal"] == "live"
    assert not (plain.data / "rollouts.jsonl").exists()
    text = (own.data / "rollouts.jsonl").read_text()
    (context.project / "kept.jsonl").write_text(text)
    replay = config_of(on_policy={**REPLAYED, "replay": "kept.jsonl"})  # relative to the project
    again = run_stage(replay, "again")
    for name in ("distilled", "finetuned"):
        assert weights(own, name) == weights(again, name)
    assert (again.data / "rollouts.jsonl").read_text() == text
    history = [json.loads((one.data / "history.json").read_text()) for one in (own, again)]
    assert history[0] == history[1]


def test_what_is_replayed_is_part_of_the_key(config_of: Configs, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    config = config_of(on_policy={**REPLAYED, "replay": "kept.jsonl"})
    with pytest.raises(InputError, match=r"kept\.jsonl .* is no file"):
        facts(config, project)
    keys = []
    for text in ("one", "other"):
        (project / "kept.jsonl").write_text(text)
        keys.append(stage_key(STAGE, config, {}, facts(config, project), 1).value)
    assert keys[0] != keys[1]
    (tmp_path / "outside.jsonl").write_text("x")
    outside = config_of(on_policy={**REPLAYED, "replay": "../outside.jsonl"})
    with pytest.raises(InputError, match="outside of the project"):
        facts(outside, project)
    assert set(facts(config_of(), project)) == {"teacher"}


EARLIER = {
    "ingest": {"chunk_tokens": 200, "chunks": 10},
    "generate": {"rows": 1000},
    "curate": {"train_rows": 900, "validation_rows": 50},
}


def test_the_signal_that_is_proposed_is_the_live_teacher(
    config_of: Configs, teacher_folder: Path
) -> None:
    for settings, proposed in (({}, "hidden_bf16"), (OWN, "live")):
        config = config_of(on_policy=settings, signal="auto")
        found = {one.field: one.proposed for one in advise(config, EARLIER, teacher_folder)}
        assert found["distill.signal"] == proposed


def test_the_estimate_knows_what_answers_cost(config_of: Configs, teacher_folder: Path) -> None:
    def found(**on_policy: Any) -> Any:
        config = config_of(signal="auto", on_policy=on_policy)
        return estimate(config, EARLIER, teacher_folder)

    off, half, own = found(), found(share=0.4), found(share=0.8)
    assert off["seconds"] < half["seconds"] < own["seconds"]
    gap = half["seconds"] - off["seconds"]
    assert own["seconds"] - off["seconds"] == pytest.approx(2 * gap, rel=0.05)
    rising = found(share={"start": 0.0, "end": 0.8})
    assert rising["seconds"] == pytest.approx(half["seconds"], rel=0.05)
    assert found(share=0.8, replay="kept.jsonl")["seconds"] == off["seconds"]
    assert own["disk_bytes"] < off["disk_bytes"]  # no file of signals


def test_the_mean_share_is_that_of_its_schedule() -> None:
    assert OnPolicyConfig(share=0.3).mean_share == pytest.approx(0.3)
    late = OnPolicyConfig(share={"start": 0.0, "end": 1.0, "begin": 0.5})
    assert late.mean_share == pytest.approx(0.25, abs=0.01)
