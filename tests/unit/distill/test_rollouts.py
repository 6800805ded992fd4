"""On-policy training: what is asked, what counts, what is kept, replayed, gone on from, refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.core.events import Emitter
from potstill.core.files import read_records, write_records
from potstill.distill import Distiller, decoding, rollouts
from potstill.distill.attention import use
from potstill.distill.batches import Row, RowSet, active_counts, encode_rows
from potstill.distill.config import DistillConfig
from potstill.distill.distiller import Distilled
from potstill.distill.mixed import MixedSteps, Writer
from potstill.distill.objective import ActiveTokens, Objective
from potstill.distill.on_policy import OnPolicyConfig
from potstill.distill.ranks import Ranks
from potstill.distill.rollouts import Asked, Kept, Refreshes, Rollout
from potstill.distill.signals import LiveTeacher
from potstill.distill.steps import Steps
from potstill.distill.terms import TermLoss, Weights
from potstill.distill.trainer import DistillTrainer
from potstill.errors import InputError, TrainingError, UsageError
from potstill.models.surgery import drop_layers
from potstill.records import Example

Train = Callable[..., Distilled]
OWN = {"share": 0.5, "max_new_tokens": 12, "refresh_steps": 3, "allow_endless": True}
REPLAYED = {name: value for name, value in OWN.items() if name != "max_new_tokens"}


@pytest.fixture
def train(teacher_folder: Path, examples: list[Example], tmp_path: Path) -> Train:
    """train(output, **settings) -> what a short training came to."""

    def run(output: str, **settings: Any) -> Distilled:
        common: dict[str, Any] = {
            "student": {"drop_layers": 1, "calibration_tokens": 64},
            "precision": "fp32",
            "epochs": 4,
            "step_tokens": 150,
            "micro_tokens": 200,
            "sequence_tokens": 120,
            "learning_rate": 3e-3,
            "validations": 3,
            "patience": 0,
            "signal": "live",
        }
        run = Distiller(teacher_folder, output=tmp_path / output, seed=5, **(common | settings))
        return run.train(examples[:8], examples[8:])

    return run


def same(one: Distilled, other: Distilled) -> bool:
    weights = other.model.state_dict()
    return one.trained == other.trained and all(
        torch.equal(tensor, weights[name]) for name, tensor in one.model.state_dict().items()
    )


def written(output: Path) -> list[Rollout]:
    return list(read_records(output / "rollouts.jsonl", Rollout))


def test_a_share_of_0_changes_nothing(train: Train, tmp_path: Path) -> None:
    assert same(train("plain"), train("off", on_policy={"share": 0, "temperature": 0.5}))
    assert not (tmp_path / "off" / "rollouts.jsonl").exists()


def test_a_share_of_1_trains_on_nothing_but_rollouts(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int, int, float]] = []
    real = DistillTrainer.training_step

    def spy(self: Any, model: Any, inputs: Any, number: Any = None) -> Any:
        batches = inputs.batches
        rows = [inputs.data.rows[row] for batch in batches for row in batch.rows]
        seen.append(
            (
                any(row.gold for row in rows),
                sum(len(row.ids) for row in rows),
                sum(row.predictions for row in rows),
                inputs.totals["kd"],
            )
        )
        return real(self, model, inputs, number)

    monkeypatch.setattr(DistillTrainer, "training_step", spy)
    done = train("own", ce_weight=0, on_policy={**OWN, "share": 1})
    assert not any(gold for gold, *_ in seen)
    tokens = [entry["tokens"] for entry in done.history["steps"]]
    sizes = [size for _, size, *_ in seen]
    assert tokens == [sum(sizes[: n + 1]) for n in range(len(sizes))]  # those really trained on
    assert done.trained.tokens == tokens[-1]
    assert all(count == total for *_, count, total in seen)
    every = written(tmp_path / "own")
    assert len(every) == 8 * 4  # each row once an epoch
    assert {one.weights_step for one in every} == {n for n in range(len(seen)) if n % 3 == 0}
    assert all(one.weights_step <= one.step < one.weights_step + 3 for one in every)
    for one in every:
        assert one.truncated == (one.ids[-1] != done.tokenizer.eos_token_id)
        assert len(one.ids) == 12 or not one.truncated
        assert one.text == done.tokenizer.decode(one.ids, skip_special_tokens=True)
    first, last = (done.history["validation"][place]["kl"] for place in (0, -1))
    assert last < first


def test_the_share_follows_its_schedule_and_every_coin_its_seed(rows: list[Row]) -> None:
    rows = [rows[number % len(rows)] for number in range(200)]
    plan = [[[(number,) for number in range(200)]] for _ in range(11)]
    rising = OnPolicyConfig(share={"start": 0.0, "end": 1.0})
    asked = rollouts.asked_for(rows, plan, rising, 1)
    shares = [len(step) / 200 for step in asked]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert all(abs(share - n / 10) < 0.12 for n, share in enumerate(shares))
    assert asked == rollouts.asked_for(rows, plan, rising, 1)
    assert asked != rollouts.asked_for(rows, plan, rising, 2)
    seeds = [one.seed for one in dict.fromkeys(one for step in asked for one in step)]
    assert len(set(seeds)) == len(seeds)
    bare = [Row("p", row.ids, len(row.ids), bare=True) for row in rows]
    assert not any(rollouts.asked_for(bare, plan, rising, 1))


def test_a_rollout_counts_for_the_teacher_and_not_for_the_cross_entropy(
    teacher: Any, rows: list[Row]
) -> None:
    """The step's loss against full logits in float64, with a gold row and a rollout in it."""
    student = drop_layers(copy.deepcopy(teacher), [1])
    objective = Objective(kd_weight=0.7, ce_weight=0.4, kd_tokens="answer", temperature=2.0)
    for packed in (True, False):
        for model in (teacher, student):
            use(model) if packed else None
        said = Rollout(
            step=0, weights_step=0, row=1, id="row1", prompt="", seed=1, text="", truncated=True,
            ids=(9, 30, 31, 2),
        )  # fmt: skip
        data = RowSet(rows[:2], [(0, 1)], packed)
        own = {1: rollouts.as_row(rows[1], said)}
        mixed, micros = rollouts.mixed(data, [[(0, 1)]], own, 500)
        step = Steps(data, [], objective.active, 0, Ranks()).made(mixed, micros)
        loss = TermLoss(
            student, LiveTeacher(teacher, torch.float32), objective,
            vocabulary=teacher.config.vocab_size, dtype=torch.float32,
        )  # fmt: skip
        weights = Weights.at(objective, 0, 1)
        parts = [loss(mixed.rows, batch, weights, step.totals) for batch in step.batches]
        kd, ce = 0.0, 0.0
        answers = 0
        for row in (rows[0], own[1]):
            ids = torch.tensor([row.ids])
            with torch.no_grad():
                log_q, log_p = (
                    model(input_ids=ids).logits[0, row.answer_start - 1 : -1].double()
                    for model in (student, teacher)
                )
            p = (log_p / 2).softmax(-1)
            kl = (p * ((log_p / 2).log_softmax(-1) - (log_q / 2).log_softmax(-1))).sum()
            kd += 4 * float(kl)
            answers += len(row.ids) - row.answer_start
            if row.gold:
                targets = ids[0, row.answer_start :]
                ce = float(torch.nn.functional.cross_entropy(log_q, targets))
        value = float(sum(part for part, _ in parts).detach())
        assert value == pytest.approx(0.7 * kd / answers + 0.4 * ce, rel=1e-5)
        assert step.totals["kd"] == answers
        assert step.totals["ce"] == len(rows[0].ids) - rows[0].answer_start


def test_rollouts_of_one_passage_still_share_it(rows: list[Row]) -> None:
    passage, own = tuple(range(20, 80)), {}
    some = [Row(f"r{n}", (*passage, 90 + n, 5, 6, 2), 61) for n in range(4)]
    data = RowSet(some, [(0, 1, 2, 3)], packed=True)
    for number in (1, 2):
        own[number] = Row(f"r{number}", (*some[number].ids[:61], *range(30)), 61, gold=False)
    mixed, micros = rollouts.mixed(data, [[(0, 1, 2, 3)]], own, 500)
    (family,) = (family for micro in micros for family in micro)
    assert len(family) == 4
    assert mixed.sizes[family] == 60 + 2 * 4 + 2 * 31
    mixed, micros = rollouts.mixed(data, [[(0, 1, 2, 3)]], own, 100)  # no room for all at once
    families = [family for micro in micros for family in micro]
    assert len(families) > 1
    assert all(mixed.sizes[family] <= 100 for family in families)
    everything = ActiveTokens("all", "all", "all")
    found = active_counts(mixed.rows, everything)
    assert found["ce"] == sum(row.predictions for row in mixed.rows if row.gold)
    assert found["kd"] == found["hidden"] == sum(row.predictions for row in mixed.rows)


@pytest.mark.whole
@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": "lora", "lora": {"rank": 4, "dropout": 0.2}},
        {"batching": "buckets", "gradient_checkpointing": True, "share_beginnings": False},
        {"hidden": {"cosine_weight": 0.5}, "attention": {"weight": 0.3}},
    ],
    ids=["lora", "buckets, checkpointed", "hidden states and maps"],
)
def test_killed_between_and_inside_refreshes_it_ends_in_the_same_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = {"on_policy": OWN, "checkpoint_minutes": 1e-5, **settings}
    whole = train("whole", **settings)
    assert whole.trained.steps > 7
    step, decode = DistillTrainer.training_step, decoding.answers
    steps = calls = 0

    def break_off(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:  # between two refreshes: a checkpoint of step 4, rollouts up to step 6
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    def break_inside(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first is the trial; steps 4 and 5 have their rollouts
            raise KeyboardInterrupt
        return decode(*args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "training_step", break_off)
    with pytest.raises(KeyboardInterrupt):
        train("broken", **settings)
    monkeypatch.setattr(DistillTrainer, "training_step", step)
    monkeypatch.setattr(decoding, "answers", break_inside)
    with pytest.raises(KeyboardInterrupt):
        train("broken", **settings)
    assert calls == 2
    monkeypatch.undo()
    kept = sorted(
        path.name for path in (tmp_path / "broken" / "work" / "training" / "rollouts").iterdir()
    )
    assert kept == ["00000000.jsonl", "00000003.jsonl"]
    assert same(whole, train("broken", **settings))
    assert written(tmp_path / "whole") == written(tmp_path / "broken")


def test_a_replay_generates_nothing_and_ends_in_the_same_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train("first", on_policy=OWN)
    path = tmp_path / "first" / "rollouts.jsonl"
    monkeypatch.setattr(decoding, "answers", None)
    again = train("again", on_policy={**REPLAYED, "replay": str(path)})
    assert same(first, again)
    assert written(tmp_path / "first") == written(tmp_path / "again")
    with pytest.raises(TrainingError, match="are missing"):
        train("more", epochs=5, on_policy={**REPLAYED, "replay": str(path)})
    others = [one.model_copy(update={"prompt": "0"}) for one in written(tmp_path / "first")]
    write_records(tmp_path / "others.jsonl", others)
    with pytest.raises(TrainingError, match="has another prompt"):
        train("others", on_policy={**REPLAYED, "replay": str(tmp_path / "others.jsonl")})
    with pytest.raises(InputError, match="is no file"):
        train("none", on_policy={**REPLAYED, "replay": str(tmp_path / "none.jsonl")})
    (tmp_path / "torn.jsonl").write_text(path.read_text()[:-9])
    with pytest.raises(InputError, match="line"):
        train("torn", on_policy={**REPLAYED, "replay": str(tmp_path / "torn.jsonl")})


def test_a_replay_may_end_early_where_the_training_may(rows: list[Row], tmp_path: Path) -> None:
    plan = [[[(0,), (1,)]] for _ in range(4)]
    asked = rollouts.asked_for(rows, plan, OnPolicyConfig(share=1.0), 1)
    kept = [_said(rows, one) for step in asked[:2] for one in step]
    write_records(tmp_path / "kept.jsonl", kept)
    source = rollouts.replayed(tmp_path / "kept.jsonl", rows, asked, patience=1)
    assert source(asked[1], 1) == kept[2:]
    with pytest.raises(TrainingError, match=r"ends at step 2, and training goes on to step 3"):
        source(asked[2], 2)
    with pytest.raises(TrainingError, match="4 are missing"):
        rollouts.replayed(tmp_path / "kept.jsonl", rows, asked, patience=0)


def _said(rows: list[Row], asked: Asked, truncated: bool = False) -> Rollout:
    row = rows[asked.row]
    return Rollout(
        step=asked.step,
        weights_step=0,
        row=asked.row,
        id=row.id,
        prompt=rollouts.prompt_digest(row),
        seed=asked.seed,
        text="yes" * (not truncated),
        ids=(40, 41, 42 if truncated else 2),
        truncated=truncated,
    )


def test_kept_rollouts_of_another_training_are_refused(rows: list[Row], tmp_path: Path) -> None:
    config = OnPolicyConfig(share=1.0, refresh_steps=1)
    plan = [[[(0,), (1,)]]]
    asked = rollouts.asked_for(rows, plan, config, 1)
    kept = Kept(tmp_path)
    kept.write(0, [_said(rows, Asked(0, 0, 3))])
    refreshes = Refreshes(asked, config, lambda some, step: [], kept, Emitter(None))
    with pytest.raises(TrainingError, match="not those of this training"):
        refreshes.of(0)


def test_a_student_that_never_stops_is_said_before_and_while_it_trains(
    train: Train, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = {**OWN, "share": 0.9, "allow_endless": False}
    monkeypatch.setattr(DistillTrainer, "training_step", None)  # it is never reached
    with pytest.raises(TrainingError, match=r"after 0 steps have no end .* does not stop"):
        train("endless", on_policy={**endless, "max_new_tokens": 2})
    config = OnPolicyConfig(share=1.0, max_new_tokens=3)
    some = [Asked(4, n, n) for n in range(8)]
    with pytest.raises(TrainingError, match="8 of 8 answers"):
        rollouts.check_ends([_said(rows, one, truncated=True) for one in some], config)
    rollouts.check_ends([_said(rows, one, truncated=True) for one in some[:7]], config)
    rollouts.check_ends([_said(rows, one, truncated=one.row > 0) for one in some], config)
    plan = [[[(n,) for n in range(8)]]]
    asked = rollouts.asked_for(rows, plan, config, 1)
    events = Emitter(tmp_path / "events.jsonl")
    refreshes = Refreshes(
        asked,
        config,
        lambda some, step: [_said(rows, one, truncated=one.row > 3) for one in some],
        Kept(tmp_path / "kept"),
        events,
    )
    refreshes.of(0)
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (warning,) = [event["message"] for event in told if event["kind"] == "warning"]
    assert warning.startswith("4 of 8 answers of the student were cut")


def test_refreshes_are_told_in_the_history_and_the_events(train: Train, tmp_path: Path) -> None:
    done = train("own", on_policy=OWN)
    steps = done.history["steps"]
    every = written(tmp_path / "own")
    for entry in steps:
        number = int(entry["step"]) - 1
        some = [one for one in every if one.weights_step == number]
        assert ("rollout_truncated" in entry) == bool(some)
        if some:
            assert entry["rollouts"] == len(some)
            cut = sum(one.truncated for one in some) / len(some)
            assert entry["rollout_truncated"] == pytest.approx(cut)
            mean = sum(len(one.ids) for one in some) / len(some)
            assert entry["rollout_tokens"] == pytest.approx(mean)
            empty = sum(not one.text.strip() for one in some) / len(some)
            assert entry["rollout_empty"] == pytest.approx(empty)
    total = sum(entry["rollout_share"] for entry in steps) / len(steps)
    assert abs(total - 0.5) < 0.2
    lines = (tmp_path / "own" / "events.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    names = {event["name"] for event in told if event["kind"] == "metric"}
    assert {"rollout_truncated", "rollout_share", "rollout_tokens_per_second"} <= names


def test_rollouts_are_written_by_the_student_as_it_then_is(
    train: Train, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refresh against transformers' greedy search, by a copy taken at its first step."""
    copies: dict[int, Any] = {}
    real = DistillTrainer.training_step

    def spy(self: Any, model: Any, inputs: Any, number: Any = None) -> Any:
        copies[self.state.global_step] = copy.deepcopy(self.model.state_dict())
        return real(self, model, inputs, number)

    monkeypatch.setattr(DistillTrainer, "training_step", spy)
    done = train("own", ce_weight=0, on_policy={**OWN, "share": 1, "temperature": 0})
    model = copy.deepcopy(done.model).float()
    every = written(tmp_path / "own")
    fixed = {one.row: one.ids for one in every if one.weights_step == 0}
    assert any(fixed.get(one.row, one.ids) != one.ids for one in every)  # it has changed
    rows = encode_rows(examples[:8], done.tokenizer, 120)
    for one in every[:: max(1, len(every) // 8)]:
        model.load_state_dict(copies[one.weights_step])
        ids = torch.tensor([rows[one.row].ids[: rows[one.row].answer_start]])
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=done.tokenizer.eos_token_id,
            pad_token_id=0,
        )
        assert tuple(found[0, ids.shape[1] :].tolist()) == one.ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"signal": "top_k", "on_policy": {"share": 0.5}}, "signal: top_k is a file"),
        ({"kd_weight": 0, "on_policy": {"share": 0.5}}, "nothing counts"),
        ({"on_policy": {"share": 1}}, "set ce_weight: 0"),
        ({"on_policy": {"share": 1.5}}, "from 0 to 1"),
        ({"on_policy": {"share": {"start": 0, "end": 2}}}, "from 0 to 1"),
        ({"on_policy": {"replay": "a.jsonl"}}, "does nothing"),
        ({"on_policy": {"share": 0.5, "batch_tokens": 100}}, "batch_tokens must not be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DistillConfig(teacher="t", **settings)
    with pytest.raises(UsageError, match=words):
        Distiller("nowhere", output="nowhere", **settings)


def test_several_processes_are_refused(rows: list[Row]) -> None:
    planned = Steps(RowSet.apart(rows), [[[(0,)]]], ActiveTokens("all", None), 0, Ranks(0, 2))
    config = OnPolicyConfig(share=0.5)
    refreshes = Refreshes([[]], config, lambda some, step: [], Kept(Path("none")), Emitter(None))
    with pytest.raises(TrainingError, match="by one process"):
        MixedSteps(planned, refreshes, 100)


def test_rows_that_leave_nothing_to_answer_are_refused(train: Train) -> None:
    with pytest.raises(TrainingError, match="No row is left"):
        train("small", on_policy={**OWN, "share": 1e-9})


def test_an_answer_has_the_room_that_its_row_leaves(teacher: Any, rows: list[Row]) -> None:
    config = DistillConfig(teacher="t", on_policy={"share": 0.5, "max_new_tokens": 50})

    class Tokenizer:
        eos_token_id = 2

    prompt = rows[0].answer_start
    write = Writer(
        teacher, rows, Tokenizer(), config,
        longest=prompt + 7, vocabulary=50, dtype=torch.float32, events=Emitter(None),
    )  # fmt: skip
    assert write.question(Asked(0, 0, 1)).limit == 7
    write.longest = 500
    assert write.question(Asked(0, 0, 1)).limit == 50


def test_want_of_memory_says_what_to_lower(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(decoding, "answers", fail)
    with pytest.raises(TrainingError, match=r"batch_tokens below 8192"):
        train("small", on_policy=OWN)


def test_a_model_that_decodes_otherwise_is_refused(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decoding.answers

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        return [[token % 50 + 3 for token in said] for said in real(*args, **kwargs)]

    monkeypatch.setattr(decoding, "answers", spoiled)
    with pytest.raises(TrainingError, match="draws other tokens"):
        train("spoiled", on_policy=OWN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.7), ("top_p", 0.9), ("max_new_tokens", 32), ("batch_tokens", 4096)],
)
def test_a_replay_takes_no_word_on_how_answers_are_drawn(name: str, value: float) -> None:
    settings = {"share": 0.5, "replay": "a.jsonl"}
    with pytest.raises(ValidationError, match=f"so {name} cannot be given"):
        OnPolicyConfig(**settings, **{name: value})
    assert OnPolicyConfig(share=0.5, **{name: value}).used
    written_out = OnPolicyConfig(**settings).model_dump(mode="json")
    assert OnPolicyConfig(**written_out) == OnPolicyConfig(**settings)


def test_wrong_keys_and_values_are_found_though_answers_are_asked_for_later(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the check before the first step reads the answers again."""
    later = {**OWN, "share": {"start": 0.0, "end": 0.5}}
    train("right", epochs=1, on_policy=later)
    real = decoding._Layer.update

    def wrong(self: Any, keys: Any, values: Any, *more: Any, **others: Any) -> Any:
        return real(self, keys, -3 * values, *more, **others)

    monkeypatch.setattr(decoding._Layer, "update", wrong)
    with pytest.raises(TrainingError, match="draws other tokens with kept keys and values"):
        train("wrong", on_policy=later)
