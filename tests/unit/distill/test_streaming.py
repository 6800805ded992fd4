"""A teacher read layer by layer: the same bytes as a resident one, through kills and full disks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.distill import DistillConfig, Distiller, StudentConfig, loading, streaming
from potstill.distill.batches import Row, RowSet
from potstill.distill.families import group
from potstill.distill.opening import open_teacher
from potstill.distill.probe import says_the_same
from potstill.distill.signals import CacheFormat, LiveTeacher, open_cache
from potstill.distill.spill import Spill
from potstill.distill.streaming import StreamedTeacher
from potstill.errors import StoreError, TrainingError, UsageError
from potstill.models.load import load_model
from potstill.models.streamed import StreamedModel

Configs = Callable[..., DistillConfig]
BF16 = CacheFormat("hidden_bf16")
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "gemma3_text": {
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups of several blocks of several batches."""
    monkeypatch.setattr("potstill.distill.recording.CACHE_BATCH_TOKENS", 120)
    monkeypatch.setattr("potstill.distill.recording.BLOCK_BATCHES", 2)
    monkeypatch.setattr("potstill.distill.streaming.GROUP_BYTES", 2 * 300 * 32 * 4)


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, random_model: Callable[..., Any]
) -> Callable[[str], Path]:
    """folders(kind) -> a random model in bf16, in several files."""
    root = tmp_path_factory.mktemp("streamed")

    def made(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            model = random_model(
                kind, seed=5, spread=0.2, norms=0.2, vocab_size=len(tokenizer), **KINDS[kind]
            )
            model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
            tokenizer.save_pretrained(folder)
        return folder

    return made


def laid_out(rows: Sequence[Row], packed: bool, share: bool) -> RowSet:
    families = RowSet.apart(rows).families
    if share:
        families = group([row.ids for row in rows], computed=1000, in_full=5000)
    return RowSet(rows, families, packed)


@pytest.fixture
def apart(rows: list[Row]) -> RowSet:
    """All rows one by one."""
    return laid_out(rows, False, False)


@pytest.fixture
def llama(folders: Callable[[str], Path]) -> StreamedTeacher:
    return StreamedTeacher(folders("llama"), torch.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def cache(folder: Path, teacher: LiveTeacher, data: RowSet, form: CacheFormat = BF16) -> None:
    open_cache(folder, teacher, "t", data, form, lambda done, of: None)


def both(
    folder: Path, data: RowSet, dtype: torch.dtype = torch.float32
) -> tuple[LiveTeacher, StreamedTeacher]:
    """The teacher resident and streamed, ready for the layout."""
    pair = LiveTeacher(load_model(folder), dtype), StreamedTeacher(folder, dtype)
    share = any(len(family) > 1 for family in data.families)
    for one in pair:
        if data.packed or share:
            # A padded batch of shared beginnings has one mask, and so no windows.
            windows = "gemma3" in folder.name and not data.packed
            with one.shortened() as model:
                same = says_the_same(model, data.rows, packed=data.packed, share=share)
            assert same != windows
    return pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("packed", "share"), [(True, True), (False, True), (False, False)], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_as_resident(
    folders: Callable[[str], Path],
    rows: list[Row],
    tmp_path: Path,
    kind: str,
    packed: bool,
    share: bool,
    dtype: torch.dtype,
) -> None:
    data = laid_out(rows, packed, share)
    resident, streamed = both(folders(kind), data, dtype)
    cache(tmp_path / "resident", resident, data)
    cache(tmp_path / "streamed", streamed, data)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "resident")
    assert sum(len(one) for one in contents(tmp_path / "streamed").values()) > 10_000


def test_every_format_has_the_same_bytes(
    folders: Callable[[str], Path], rows: list[Row], tmp_path: Path, format: CacheFormat
) -> None:
    data = laid_out(rows, True, True)
    resident, streamed = both(folders("qwen3"), data, torch.bfloat16)
    cache(tmp_path / "resident", resident, data, format)
    cache(tmp_path / "streamed", streamed, data, format)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "resident")


def test_plain_logits_are_the_models_own(folders: Callable[[str], Path], rows: list[Row]) -> None:
    resident, streamed = both(folders("gemma3_text"), laid_out(rows, False, False))
    for one, other in zip(resident.logits(rows[:3]), streamed.logits(rows[:3]), strict=True):
        assert torch.equal(one, other)


def test_weights_are_read_once_a_group(
    folders: Callable[[str], Path],
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    fill = StreamedModel._fill
    monkeypatch.setattr(
        StreamedModel, "_fill", lambda self, number: read.append(number) or fill(self, number)
    )
    data, said = laid_out(rows, False, False), list[tuple[int, int]]()
    teacher = StreamedTeacher(
        folders("llama"), torch.float32, report=lambda done, of: said.append((done, of))
    )
    groups = streaming._groups(teacher, data)
    cache(tmp_path / "cache", teacher, data)
    assert len(groups) > 1
    assert sum(len(one) for one in groups) > len(groups)
    assert read == [0, 1, 2] * len(groups)
    assert said == [(done + 1, len(read)) for done in range(len(read))]


class Killed(BaseException):
    """The end of a process."""


def killed_after(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, count: int
) -> Callable[[], None]:
    """Let the method work `count` times and then never again; returns what undoes it."""
    real, calls = getattr(owner, name), iter(range(count))

    def method(*args: Any, **named: Any) -> Any:
        if next(calls, None) is None:
            raise Killed
        return real(*args, **named)

    monkeypatch.setattr(owner, name, method)
    return lambda: monkeypatch.setattr(owner, name, real)


@pytest.mark.parametrize("note_seconds", [0.0, 1e9], ids=["noted often", "noted by layers"])
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (Spill, "write"),
        (Spill, "_note"),
        (Spill, "_sync"),
        (Spill, "result"),
        ("potstill.distill.cache.ShardWriter", "append"),
        ("potstill.distill.cache.ShardWriter", "finish"),
    ],
)
def test_killed_in_any_phase_it_ends_in_the_same_bytes(
    folders: Callable[[str], Path],
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    method: str,
    note_seconds: float,
) -> None:
    if isinstance(owner, str):
        from potstill.distill import cache as module

        owner = getattr(module, owner.rpartition(".")[2])
    monkeypatch.setattr("potstill.distill.spill.NOTE_SECONDS", note_seconds)
    data = laid_out(rows, False, False)
    teacher = StreamedTeacher(folders("llama"), torch.float32)
    cache(tmp_path / "whole", teacher, data)
    kills = 0
    for count in (0, 1, 2, 3, 5, 8, 13):
        revive = killed_after(monkeypatch, owner, method, count)
        try:
            cache(tmp_path / "killed", StreamedTeacher(folders("llama"), torch.float32), data)
        except Killed:
            kills += 1
            assert not (tmp_path / "killed" / "index.json").exists()
        revive()
    assert kills
    cache(tmp_path / "killed", teacher, data)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_was_done_before_a_kill_is_not_done_again(
    folders: Callable[[str], Path],
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = laid_out(rows, False, False)
    computed: list[int] = []
    real = StreamedModel.compute

    def counted(self: StreamedModel, number: int, *others: Any) -> Any:
        computed.append(number)
        return real(self, number, *others)

    monkeypatch.setattr(StreamedModel, "compute", counted)
    cache(tmp_path / "whole", StreamedTeacher(folders("llama"), torch.float32), data)
    whole = len(computed)
    first = len(streaming._groups(StreamedTeacher(folders("llama"), torch.float32), data)[0])
    for note_seconds, repeated in ((0.0, 0), (1e9, 1)):
        folder = tmp_path / f"killed-{repeated}"
        monkeypatch.setattr("potstill.distill.spill.NOTE_SECONDS", note_seconds)
        computed.clear()
        revive = killed_after(monkeypatch, Spill, "write", first + 1)  # in the second layer
        with pytest.raises(Killed):
            cache(folder, StreamedTeacher(folders("llama"), torch.float32), data)
        revive()
        computed.pop()  # was not kept
        cache(folder, StreamedTeacher(folders("llama"), torch.float32), data)
        assert len(computed) == whole + repeated


@pytest.mark.parametrize("what", ["states-0.bin", "states-1.bin", "progress.json"])
def test_states_that_are_damaged_or_anothers_are_computed_again(
    llama: StreamedTeacher,
    apart: RowSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    cache(tmp_path / "whole", llama, apart)
    folder = tmp_path / "cache"
    revive = killed_after(monkeypatch, Spill, "result", 0)
    with pytest.raises(Killed):
        cache(folder, llama, apart, CacheFormat("hidden_int8"))
    with pytest.raises(Killed):  # of another format: nothing of it is taken
        cache(folder, llama, apart)
    revive()
    os.truncate(folder / "states" / what, 11)
    cache(folder, llama, apart)
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_finished_cache_keeps_no_states(
    folders: Callable[[str], Path], rows: list[Row], tmp_path: Path
) -> None:
    data = laid_out(rows[:3], False, False)
    teacher = StreamedTeacher(folders("llama"), torch.float32)
    cache(tmp_path / "cache", teacher, data)
    assert not (tmp_path / "cache" / "states").exists()
    (tmp_path / "cache" / "states").mkdir()  # killed before they were removed
    cache(tmp_path / "cache", teacher, data)
    assert not (tmp_path / "cache" / "states").exists()


def test_too_little_disk_is_said_before_anything_is_computed(
    llama: StreamedTeacher,
    apart: RowSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("potstill.distill.spill.free_disk_bytes", lambda folder: 5000)
    monkeypatch.setattr(StreamedModel, "compute", None)
    with pytest.raises(StoreError, match=r"needs [\d,]+ bytes in .*, and 5,000 are free"):
        cache(tmp_path / "cache", llama, apart)


def test_a_disk_that_gets_full_is_one_clear_error_and_it_goes_on_later(
    llama: StreamedTeacher,
    apart: RowSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = os.fsync, iter(range(6))

    def full(descriptor: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "no space")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"Cannot write .*states.*No space left"):
        cache(tmp_path / "cache", llama, apart)
    monkeypatch.setattr(os, "fsync", real)
    cache(tmp_path / "cache", llama, apart)
    cache(tmp_path / "whole", llama, apart)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


@pytest.fixture
def config_of(config_of: Configs) -> Configs:
    return partial(
        config_of,
        student=StudentConfig(
            drop_layers=1, calibration_tokens=64, method="influence", refit=False
        ),
        epochs=1,
        step_tokens=400,
        validations=1,
        signal="hidden_bf16",
    )


def test_a_whole_run_has_the_same_bytes(
    config_of: Configs,
    run_stage: Callable[..., Any],
    events_of: Callable[[], list[dict[str, Any]]],
) -> None:
    from potstill.core.files import digests_of

    found, dropped = [], []
    for how in ("resident", "streamed"):
        draft = run_stage(config_of(teacher_loading=how), how)
        files = digests_of(draft.data)
        # Of a resident teacher more is measured.
        dropped.append(json.loads((draft.data / "surgery.json").read_text())["dropped"])
        skipped = ("tensorboard", "surgery.json")
        found.append({name: one for name, one in files.items() if not name.startswith(skipped)})
    assert found[0] == found[1]
    assert dropped[0] == dropped[1]
    steps = {event["step"] for event in events_of() if event["kind"] == "progress"}
    assert "teacher layer by layer" in steps


@pytest.fixture
def training_rows() -> list[dict[str, str]]:
    return [
        {"question": f"What does gauge {n} show in hall {n % 7}?", "answer": f"{3 * n} bar"}
        for n in range(12)
    ]


def test_distiller_with_a_student_of_its_own_and_a_live_signal_left_to_auto(
    teacher_folder: Path, tmp_path: Path, training_rows: list[dict[str, str]]
) -> None:
    from potstill.models.surgery import drop_layers

    student = tmp_path / "student"
    drop_layers(load_model(teacher_folder), [1, 2]).save_pretrained(student)
    settings = {"precision": "fp32", "epochs": 1, "validations": 1, "micro_tokens": 1024}
    weights = []
    for how in ("resident", "streamed"):
        # Seen once, rows are asked for live; a streamed teacher has a file for them.
        signal = "hidden_bf16" if how == "resident" else "auto"
        output = tmp_path / how
        distiller = Distiller(
            teacher_folder,
            str(student),
            output=output,
            teacher_loading=how,
            signal=signal,
            **settings,
        )
        distiller.train(training_rows)
        weights.append((output / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_what_needs_the_whole_teacher_is_refused_before_time_is_spent(
    config_of: Configs, tmp_path: Path, teacher: Any, tokenizer: Any, context: Any
) -> None:
    for setting in (
        {"signal": "live"},
        {"hidden": {"mse_weight": 0.1}, "signal": "auto"},
        {"attention": {"weight": 0.1}, "signal": "auto"},
    ):
        with pytest.raises(ValueError, match=r"at every step.*teacher_loading: streamed does not"):
            config_of(teacher_loading="streamed", **setting)
    with pytest.raises(ValueError, match="teachers are in memory one beside"):
        config_of(teacher_loading="streamed", teachers=[{}, {"weight": 2}])
    with pytest.raises(ValueError, match="teacher_precision: 8bit keeps the teacher in memory"):
        config_of(teacher_loading="streamed", teacher_precision="8bit")
    greedy = config_of(teacher_loading="streamed", student=StudentConfig(refit=False))
    with pytest.raises(TrainingError, match="greedy runs the teacher's layers") as error:
        opened(greedy, context)
    assert "influence" in str(error.value)
    with pytest.raises(UsageError, match="in memory already"):
        Distiller(
            teacher, "x", tokenizer=tokenizer, output=tmp_path / "o", teacher_loading="streamed"
        )


def opened(config: DistillConfig, context: Any, **more: Any) -> LiveTeacher:
    return open_teacher(config.teacher, config, [], context.events, **more)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.distill.opening.available_memory_bytes", lambda: 1000)


def test_auto_streams_what_does_not_fit_and_says_so(
    config_of: Configs,
    context: Any,
    events_of: Callable[[], list[dict[str, Any]]],
    little_memory: None,
) -> None:
    assert opened(config_of(), context).streamed
    (said,) = [event for event in events_of() if event["kind"] == "warning"]
    assert "the teacher is read layer by layer" in json.dumps(said)
    live = config_of(signal="live")
    assert not opened(live, context).streamed
    greedy = config_of(student=StudentConfig(refit=False))
    assert not opened(greedy, context).streamed
    assert opened(greedy, context, student=1000).streamed
    said = [json.dumps(event) for event in events_of() if event["kind"] == "warning"]
    assert "signal: live asks the teacher at every step" in said[1]
    assert "method: influence" in said[2]
    assert not opened(config_of(teacher_loading="resident"), context).streamed


def test_auto_holds_what_fits(config_of: Configs, context: Any) -> None:
    found = opened(config_of(), context)
    assert not found.streamed


def test_the_decision_by_hand() -> None:
    student = {"method": "influence", "refit": False}
    config = DistillConfig(teacher="x", precision="bf16", micro_tokens=1024, student=student)
    # 7e9 weights of 2 bytes; 1e8 of 16 bytes; 1024 tokens of 1.6 MB at 99M weights.
    needed = 14e9 + 1.6e9 + 1024 * 1.6e6 * (1e8 / 99e6) ** 0.5
    # A student that is cut is cut from a copy in fp32, before it is trained.
    copied = 14e9 + 4 * (7e9 + 1e8)
    for cuts, least in ((False, needed), (True, copied)):
        found = loading.resident_bytes(config, 7e9, 1e8, cuts=cuts)
        assert found == pytest.approx(least)
        for free, streamed in ((least * 0.99, True), (least * 1.01, False), (None, False)):
            memory = None if free is None else int(free)
            assert loading.is_streamed(config, 7e9, 1e8, memory, cuts=cuts) == streamed
    assert loading.spill_bytes(config, 4096, 1e5) == 2 * 2 * 4096 * 1e5
    assert loading.spill_bytes(config, 4096, 1e9) == loading.GROUP_BYTES


def test_a_plan_knows_what_streaming_takes() -> None:
    from potstill.distill.plan import estimate

    earlier = {
        "ingest": {"chunk_tokens": 200.0, "chunks": 10.0},
        "generate": {"rows": 100.0},
        "curate": {"train_rows": 80.0, "validation_rows": 10.0},
    }
    settings = {"teacher": "nobody/none-7B", "precision": "bf16"}
    settings["student"] = {"parameters_ratio": 0.5, "method": "influence", "refit": False}
    found = {
        how: estimate(DistillConfig(**settings, teacher_loading=how), earlier, Path())
        for how in ("resident", "streamed")
    }
    saved = found["resident"]["memory_bytes"] - found["streamed"]["memory_bytes"]
    assert saved == pytest.approx((2 - 2 * 0.25) * 7e9)
    assert found["streamed"]["disk_bytes"] > found["resident"]["disk_bytes"]
