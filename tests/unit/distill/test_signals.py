"""The cache of hidden states: exact, resumable, and closed to any other teacher or text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.distill.batches import ActiveTokens, Row, RowSet, collate, encode_rows
from potstill.distill.signals import CachedTeacher, LiveTeacher, cache_key, open_cache
from potstill.errors import StoreError, TrainingError
from potstill.records import Example


@pytest.fixture
def rows(tokenizer: Any, examples: list[Example]) -> list[Row]:
    return encode_rows(examples, tokenizer, 500)


@pytest.fixture
def live(teacher: Any) -> LiveTeacher:
    return LiveTeacher(teacher.train().requires_grad_(True), torch.bfloat16)


def test_the_live_teacher_is_put_to_evaluation_without_gradients(live: LiveTeacher) -> None:
    assert not any(module.training for module in live.model.modules())
    assert not any(parameter.requires_grad for parameter in live.model.parameters())


def test_the_cache_gives_what_the_live_teacher_gives(
    live: LiveTeacher, rows: list[Row], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    cached = open_cache(
        tmp_path,
        live,
        "t",
        RowSet.apart(rows),
        lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (sum(row.predictions for row in rows),) * 2
    for chosen in ([3], [0, 5, 11], [7, 2]):
        for active in (ActiveTokens("all", None), ActiveTokens("answer", None)):
            batch = collate(rows, [(row,) for row in chosen], active, padding=2)
            expected, found = live.hidden(rows, batch), cached.hidden(rows, batch)
            assert found.shape == (len(batch.targets), live.weight.shape[1])
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_damaged_file_is_computed_again_to_the_same_bytes(
    live: LiveTeacher, rows: list[Row], tmp_path: Path
) -> None:
    data = RowSet.apart(rows)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        open_cache(folder, live, "t", data, lambda done, of: None)
    expected = (whole / "hidden.bf16").read_bytes()
    for size in (0, 1, len(expected) // 3, len(expected) - 1):
        (broken / "index.json").unlink()
        (broken / "part.json").write_text((whole / "index.json").read_text())
        (broken / "hidden.bf16").write_bytes(expected[:size])
        open_cache(broken, live, "t", data, lambda done, of: None)
        assert (broken / "hidden.bf16").read_bytes() == expected


def test_rows_that_were_computed_before_a_kill_are_not_computed_again(
    live: LiveTeacher, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.distill.signals.CACHE_BATCH_TOKENS", 100)
    calls: list[int] = []
    real = LiveTeacher.hidden

    def counted(self: LiveTeacher, some: Any, batch: Any) -> Any:
        calls.extend(batch.rows)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return real(self, some, batch)

    monkeypatch.setattr(LiveTeacher, "hidden", counted)
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, live, "t", RowSet.apart(rows), lambda done, of: None)
    monkeypatch.setattr(LiveTeacher, "hidden", lambda *a: (calls.extend(a[2].rows), real(*a))[1])
    first = len(calls)
    open_cache(tmp_path, live, "t", RowSet.apart(rows), lambda done, of: None)
    assert 0 < len(calls[first:]) < len(rows)


@pytest.mark.parametrize("other", ["teacher", "text", "order"])
def test_a_cache_of_another_teacher_or_text_is_refused(
    live: LiveTeacher, rows: list[Row], tmp_path: Path, other: str
) -> None:
    open_cache(tmp_path, live, "t", RowSet.apart(rows), lambda done, of: None)
    changed = {
        "teacher": rows,
        "text": [dataclasses.replace(rows[0], ids=(*rows[0].ids[:-1], 7)), *rows[1:]],
        "order": rows[::-1],
    }[other]
    digest = "u" if other == "teacher" else "t"
    assert cache_key(digest, changed, 32) != cache_key("t", rows, 32)
    with pytest.raises(StoreError, match="belong to another teacher"):
        CachedTeacher(tmp_path, live.weight, digest, changed)


def test_a_damaged_cache_is_refused(live: LiveTeacher, rows: list[Row], tmp_path: Path) -> None:
    open_cache(tmp_path, live, "t", RowSet.apart(rows), lambda done, of: None)
    with (tmp_path / "hidden.bf16").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StoreError, match="damaged"):
        open_cache(tmp_path, live, "t", RowSet.apart(rows), lambda done, of: None)


def test_a_teacher_with_bad_numbers_names_the_row(
    live: LiveTeacher, rows: list[Row], tmp_path: Path
) -> None:
    live.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="row row3 are not finite"):
        open_cache(tmp_path, live, "t", RowSet.apart(rows), lambda done, of: None)
