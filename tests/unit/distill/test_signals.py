"""Teacher signals: a cache gives what the live teacher says, and refuses any other."""

from __future__ import annotations

import dataclasses
import gc
import mmap
import random
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.distill import attention
from potstill.distill.batches import MicroBatch, Row, RowSet, collate
from potstill.distill.families import group
from potstill.distill.objective import ActiveTokens
from potstill.distill.signals import (
    CachedTeacher,
    CacheFormat,
    HiddenStates,
    LiveTeacher,
    Samples,
    TopK,
    open_cache,
    read_cache,
)
from potstill.distill.sparse import sample, uniforms
from potstill.errors import StoreError, TrainingError

T = 1.5
BF16 = CacheFormat("hidden_bf16")
SPARSE = CacheFormat("sampled", 12, T, seed=5)


def quiet(done: int, of: int) -> None:
    pass


def apart(rows: Sequence[Row]) -> RowSet:
    return RowSet.apart(rows)


def in_families(rows: Sequence[Row]) -> RowSet:
    return RowSet(rows, group([row.ids for row in rows], computed=1000, in_full=5000))


def packed(rows: Sequence[Row]) -> RowSet:
    return dataclasses.replace(in_families(rows), packed=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read_all(cached: CachedTeacher, data: RowSet) -> None:
    for family in data.families:
        cached.tokens(data.rows, data.collate([family], ActiveTokens("all", None), 0))


def log_p_of(live: LiveTeacher, rows: Sequence[Row], batch: MicroBatch) -> torch.Tensor:
    said = live.tokens(rows, batch)
    return torch.log_softmax(said.output.logits(said.states) / T, -1)


def check_tokens(said: Any, format: CacheFormat, live: Any, rows: Any, batch: MicroBatch) -> None:
    """Hold what a cache says against the live teacher."""
    exact, log_p = live.tokens(rows, batch), log_p_of(live, rows, batch)
    if format.hidden:
        assert isinstance(said, HiddenStates)
        assert said.output is live.output
        near = (said.states.float() - exact.states).norm(dim=-1) / exact.states.norm(dim=-1)
        assert near.max() < 0.01
        return
    assert said.ids.shape == said.log_p.shape == (len(batch.targets), format.count)
    assert all(len(set(row)) == format.count for row in said.ids.tolist())
    if format.kind == "top_k":
        assert isinstance(said, TopK)
        assert torch.equal(said.ids, log_p.topk(format.count).indices)
        torch.testing.assert_close(said.log_p, log_p.gather(-1, said.ids), rtol=0, atol=1e-3)
        rest = log_p.scatter(-1, said.ids, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(said.tail, rest, rtol=0, atol=1e-3)
    else:
        assert isinstance(said, Samples)
        used = said.weights > 0
        torch.testing.assert_close(said.weights.sum(-1), torch.ones(len(used)))
        found, expected = said.log_p[used], log_p.gather(-1, said.ids)[used]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
        assert (said.log_p[~used] == 0).all()


def test_the_live_teacher_is_put_to_evaluation_without_gradients(live: LiveTeacher) -> None:
    assert not any(module.training for module in live.model.modules())
    assert not any(parameter.requires_grad for parameter in live.model.parameters())
    assert not live.output.weight.requires_grad


@pytest.mark.parametrize("layout", [apart, in_families, packed])
def test_a_cache_gives_what_the_live_teacher_gives(
    live: LiveTeacher,
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    format: CacheFormat,
    layout: Callable[[list[Row]], RowSet],
) -> None:
    attention.use(live.model)
    data = layout(rows)
    cached = build(data, format)
    rng = random.Random(3)
    for _ in range(4):
        chosen = rng.sample(list(data.families), min(3, len(data.families)))
        for active in (ActiveTokens("all", None), ActiveTokens("answer", None)):
            for as_packed in (True, False):
                batch = collate(rows, chosen, active, 2, packed=as_packed)
                check_tokens(cached.tokens(rows, batch), format, live, rows, batch)


def test_the_layouts_are_different_ones(rows: list[Row]) -> None:
    assert len(in_families(rows).families) < len(apart(rows).families) - 2
    assert sum(in_families(rows).sizes.values()) < sum(len(row.ids) for row in rows)


def test_a_batch_without_active_tokens_gives_none(
    rows: list[Row], build: Callable[..., CachedTeacher]
) -> None:
    cached = build(apart(rows), SPARSE)
    batch = collate(rows, [(0,), (1,)], ActiveTokens(None, None), 0)
    said = cached.tokens(rows, batch)
    assert isinstance(said, Samples)
    assert said.ids.shape == (0, SPARSE.count)


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_padded_words_are_never_kept(
    live: LiveTeacher, rows: list[Row], build: Callable[..., CachedTeacher], kind: str
) -> None:
    words, format = 30, CacheFormat(kind, 30, T, seed=5)
    data = apart(rows)
    cached = build(data, format, vocabulary=words)
    batch = data.collate([(0,), (4,)], ActiveTokens("all", None), 0)
    said, exact = cached.tokens(rows, batch), live.tokens(rows, batch)
    assert not isinstance(said, HiddenStates)
    assert said.ids.max() < words
    log_p = torch.log_softmax(exact.output.logits(exact.states)[:, :words] / T, -1)
    used = said.log_p != 0
    expected = log_p.gather(-1, said.ids)[used]
    torch.testing.assert_close(said.log_p[used], expected, rtol=0, atol=1e-3)
    with pytest.raises(StoreError, match="another format"):
        read_cache(cached.shards.folder, live.output, "t", data, format)


def test_draws_depend_on_the_seed_and_the_place_alone(
    live: LiveTeacher, rows: list[Row], build: Callable[..., CachedTeacher]
) -> None:
    data = apart(rows)
    cached = build(data, SPARSE)
    batch = data.collate([(3,)], ActiveTokens("all", None), 0)
    first = sum(len(row.ids) for row in rows[:3])
    drawn = uniforms(SPARSE.seed, first + batch.positions, SPARSE.count)
    exact = live.tokens(rows, batch)
    expected, said = sample(exact.output.logits(exact.states), T, drawn), cached.tokens(rows, batch)
    assert isinstance(said, Samples)
    assert torch.equal(said.ids, expected.ids)
    torch.testing.assert_close(said.weights, expected.weights)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "teacher": ({"digest": "u"}, "another teacher"),
    "text": ({"rows": lambda rows: [changed(rows[0]), *rows[1:]]}, "another tokenizer, template"),
    "template": (
        {"rows": lambda rows: [dataclasses.replace(row, ids=(1, *row.ids)) for row in rows]},
        "another tokenizer, template or text",
    ),
    "order": ({"rows": lambda rows: rows[::-1]}, "another tokenizer, template or text"),
    "families": ({"layout": in_families}, "another tokenizer, template or text"),
    "temperature": ({"temperature": 1.0}, "another format"),
    "count": ({"count": 13}, "another format"),
    "seed": ({"seed": 6}, "another format"),
    "kind": ({"kind": "top_k"}, "another format"),
    "vocabulary": ({"vocabulary": 100}, "another format"),
    "both": ({"digest": "u", "seed": 6}, "another teacher and another format"),
}


def changed(row: Row) -> Row:
    return dataclasses.replace(row, ids=(*row.ids[:-1], 7))


@pytest.mark.parametrize("name", CHANGES)
def test_a_cache_of_another_teacher_text_or_format_is_refused(
    live: LiveTeacher,
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    tmp_path: Path,
    name: str,
) -> None:
    build(apart(rows), SPARSE)
    before = contents(tmp_path / "cache")
    change, words = dict(CHANGES[name][0]), CHANGES[name][1]
    data = change.pop("layout", apart)(change.pop("rows", list)(rows))
    digest, vocabulary = change.pop("digest", "t"), change.pop("vocabulary", None)
    format = dataclasses.replace(SPARSE, **change)
    for again in (
        lambda: build(data, format, digest=digest, vocabulary=vocabulary),
        lambda: read_cache(
            tmp_path / "cache", live.output, digest, data, format, vocabulary=vocabulary
        ),
    ):
        with pytest.raises(StoreError, match=words) as caught:
            again()
        assert "Delete the folder" in caught.value.hint
    assert contents(tmp_path / "cache") == before


def test_hidden_states_serve_every_temperature_and_seed(
    rows: list[Row], build: Callable[..., CachedTeacher]
) -> None:
    build(apart(rows), BF16)
    build(apart(rows), CacheFormat("hidden_bf16", count=3, temperature=2.0, seed=9))


def test_the_files_are_mapped_and_the_body_is_gone(
    rows: list[Row], teacher_folder: Path, tmp_path: Path
) -> None:
    from potstill.models.load import load_model

    data = in_families(rows)
    live = LiveTeacher(load_model(teacher_folder), torch.float32)
    body, output = weakref.ref(live.body.layers[0]), live.output
    open_cache(tmp_path, live, "t", data, CacheFormat("hidden_int8"), quiet)
    del live
    cached = read_cache(tmp_path, output, "t", data, CacheFormat("hidden_int8"))
    gc.collect()
    assert body() is None
    read_all(cached, data)
    assert all(isinstance(one, mmap.mmap) for one in cached.shards.maps)
    assert read_cache(tmp_path, output, "t", data, CacheFormat("hidden_int8")).output is output


def test_words_need_no_output_layer(rows: list[Row], build: Callable[..., CachedTeacher]) -> None:
    assert build(apart(rows), SPARSE).output is None


def test_rows_that_are_not_those_of_the_cache_are_refused(
    rows: list[Row], build: Callable[..., CachedTeacher]
) -> None:
    cached = build(apart(rows), BF16)
    others = [changed(rows[0]), *rows[1:]]
    for some, family in ((others, (0,)), (rows, (0, 1))):
        batch = collate(some, [family], ActiveTokens("all", None), 0)
        with pytest.raises(TrainingError, match=r"row0.* are not those of the"):
            cached.tokens(some, batch)


@pytest.mark.parametrize(("count", "temperature"), [(0, 1.0), (100_000, 1.0), (5, 0.0)])
@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_an_impossible_format_is_refused(
    rows: list[Row],
    build: Callable[..., CachedTeacher],
    kind: Any,
    count: int,
    temperature: float,
) -> None:
    with pytest.raises(TrainingError, match=f"kind {kind} cannot keep {count} words"):
        build(apart(rows), CacheFormat(kind, count, temperature))
