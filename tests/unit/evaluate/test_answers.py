"""Batched answers from cached prompts against transformers' own greedy generation, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from potstill.evaluate.answers import ReadPrompt, write_answers
from potstill.evaluate.forward import head_of
from potstill.evaluate.speed import measure_speed
from potstill.models.prefix_reader import PrefixReader
from potstill.models.sampling import Draw, end_tokens, likeliest

PROMPTS = [
    [256, 5, 6, 7, 8, 9, 10],
    [256, 70],
    [256, 33, 44, 55],
    [256, 5, 6, 7, 8, 11],
    [256, 1, 2],
]


def read(model: Any, ids: list[int]) -> ReadPrompt:
    reader = PrefixReader(model)
    hidden = reader.read(ids, 0)
    return ReadPrompt(
        reader.prefix(len(ids)), len(ids), int(head_of(model, 258).logits(hidden[-1:]).argmax())
    )


@torch.inference_mode()
def test_answers_equal_transformers_generate(make_model: Callable[..., Any]) -> None:
    ended = set()
    for seed in range(6):
        model = make_model(seed)
        own = [
            model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=None
            )[0, len(ids) :].tolist()
            for ids in PROMPTS
        ]
        # a token that one answer says in its middle is made the end token
        end = own[1][5]
        ours = write_answers(
            model, [read(model, ids) for ids in PROMPTS], frozenset({end}), 12, 258
        )
        for answer, full in zip(ours, own, strict=True):
            expected = full[: full.index(end)] if end in full else full
            assert answer.ids == expected
            assert answer.finished == (end in full)
        ended.add(sum(answer.finished for answer in ours))
    assert len(ended) > 1  # the batch shrank by different amounts


@torch.inference_mode()
def test_padding_rows_of_the_vocabulary_are_never_said(make_model: Callable[..., Any]) -> None:
    model = make_model(4)
    answers = write_answers(model, [read(model, PROMPTS[0])], frozenset(), 8, vocabulary=100)
    assert all(token < 100 for token in answers[0].ids[1:])


@torch.inference_mode()
def test_drawn_answers_do_not_depend_on_their_neighbours(make_model: Callable[..., Any]) -> None:
    model = make_model(2)

    def drawn(rows: list[int], **settings: Any) -> list[list[int]]:
        prompts = []
        for row in rows:
            draw = Draw(row, **{"temperature": 1.5, "top_p": 1.0, **settings})
            reader = PrefixReader(model)
            logits = head_of(model, 258).logits(reader.read(PROMPTS[row], 0)[-1:])[0]
            first = int(draw.noisy(logits).argmax())
            size = len(PROMPTS[row])
            prompts.append(ReadPrompt(reader.prefix(size), size, first, draw))
        return [one.ids for one in write_answers(model, prompts, frozenset(), 10, 258)]

    together = drawn([0, 1, 2])
    assert together == [*drawn([0]), *drawn([1]), *drawn([2])]
    greedy = drawn([0, 1, 2], temperature=0.0)
    assert greedy != together
    assert drawn([0, 1, 2], top_k=1) == greedy
    assert drawn([0, 1, 2], top_p=1e-6) == greedy


def test_only_the_likeliest_tokens_are_drawn_and_as_often_as_they_should() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0, 2.5])
    draw = Draw(5, 1.0, 1.0, top_k=2)
    said = torch.tensor([int(draw.noisy(logits).argmax()) for _ in range(4000)])
    assert set(said.tolist()) == {1, 4}
    share = float((said == 1).double().mean())
    assert abs(share - math.exp(3) / (math.exp(3) + math.exp(2.5))) < 0.03
    assert torch.equal(likeliest(logits, 9), logits)


def test_end_tokens_come_from_the_generation_configuration_and_the_tokenizer(
    make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model(0)
    model.generation_config.eos_token_id = [3, 4]
    assert end_tokens(model, tokenizer) == {3, 4, 257}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == {257}


def test_speed_is_measured_in_turns_and_each_model_is_loaded_alone(
    make_model: Callable[..., Any],
) -> None:
    loaded: list[str] = []
    heard: list[int] = []

    def loader(name: str, layers: int) -> Callable[[], Any]:
        def load() -> Any:
            loaded.append(name)
            return make_model(0, layers=layers)

        return load

    speeds = measure_speed(
        {"small": loader("small", 1), "large": loader("large", 6)},
        {"small": PROMPTS[0], "large": PROMPTS[0]},
        tokens=4,
        rounds=3,
        parallel=(2, 5),
        tell=heard.append,
    )
    assert loaded == ["small", "large"] * 3
    assert heard == [1, 2, 3, 4, 5, 6]
    for speed in speeds.values():
        assert speed.tokens_per_second > 0
        assert speed.time_to_first_token_s > 0
        assert speed.peak_memory_bytes > 10_000_000
        assert 0 < speed.token_p50_s <= speed.token_p95_s
        assert speed.load_s > 0
        assert list(speed.parallel) == ["2", "5"]
        assert min(speed.parallel.values()) > 0
