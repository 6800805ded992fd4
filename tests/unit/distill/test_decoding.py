"""Decoding with kept keys and values against transformers' own, whatever stands in the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from potstill.distill import attention
from potstill.distill.config import DistillConfig
from potstill.distill.decoding import Question, answers, batches, frozen
from potstill.distill.train import _trainable
from potstill.models.sampling import Draw

WORDS, LIMIT = 97, 24
ENDS = {5, 6}


@pytest.fixture(params=["llama", "windowed"])
def model(request: pytest.FixtureRequest, random_model: Callable[..., Any]) -> Any:
    """A random model in fp32; one of them has layers that see eight tokens back alone."""
    sizes = {"vocab_size": WORDS, "intermediate_size": 64}
    if request.param == "llama":
        return random_model(**sizes)
    layers = ["sliding_attention", "full_attention"] * 2
    return random_model(
        "gemma3_text", num_hidden_layers=4, layer_types=layers, sliding_window=8, **sizes
    )


@pytest.fixture
def prompts() -> list[list[int]]:
    """Four that share 50 tokens, one of which is the beginning of the others; three others."""
    random = torch.Generator().manual_seed(8)

    def some(count: int) -> list[int]:
        found: list[int] = torch.randint(7, WORDS, (count,), generator=random).tolist()
        return found

    base = some(50)
    return [base + some(3), base + some(9), base, base + some(1), some(5), some(20), some(2)]


def asked(prompts: list[list[int]], temperature: float = 0.0) -> list[Question]:
    return [
        Question(prompt, Draw(number, temperature, 1.0), LIMIT - number)
        for number, prompt in enumerate(prompts)
    ]


def test_greedy_answers_are_those_of_transformers(model: Any, prompts: list[list[int]]) -> None:
    found = answers(model, asked(prompts), ENDS, vocabulary=WORDS, batch_tokens=2000)
    for number, (prompt, said) in enumerate(zip(prompts, found, strict=True)):
        ids = torch.tensor([prompt])
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LIMIT - number,
            do_sample=False,
            eos_token_id=sorted(ENDS),
            pad_token_id=0,
        )
        assert said == whole[0, len(prompt) :].tolist()
    lengths = {len(said) for said in found}
    assert len(lengths) > 1  # rows left the batch at different times


@pytest.mark.parametrize("batch_tokens", [1, 100, 300])
def test_answers_do_not_depend_on_the_batch(
    model: Any, prompts: list[list[int]], batch_tokens: int
) -> None:
    whole = answers(model, asked(prompts, 1.3), ENDS, vocabulary=WORDS, batch_tokens=2000)
    other = asked(prompts, 1.3)[::-1]
    found = answers(model, other, ENDS, vocabulary=WORDS, batch_tokens=batch_tokens)
    assert found[::-1] == whole
    assert len({tuple(said) for said in whole}) == len(whole)


def test_batches_hold_every_question_once_and_stay_within_their_tokens(
    prompts: list[list[int]],
) -> None:
    questions = asked(prompts)
    for limit in (1, 80, 200, 5000):
        found = batches(questions, limit)
        numbers = [number for batch in found for family in batch for number in family]
        assert sorted(numbers) == list(range(len(prompts)))
        for batch in found:
            members = [questions[number].tokens for family in batch for number in family]
            assert len(members) == 1 or len(members) * max(members) <= limit
    assert len(batches(questions, 5000)) == 1


def test_no_word_beyond_the_vocabulary_is_drawn(model: Any, prompts: list[list[int]]) -> None:
    found = answers(model, asked(prompts, 20.0), ENDS, vocabulary=40, batch_tokens=2000)
    assert max(token for said in found for token in said) < 40


def test_the_end_is_kept_and_nothing_follows_it(model: Any, prompts: list[list[int]]) -> None:
    questions = [Question(prompts[4], Draw(seed, 3.0, 1.0), LIMIT) for seed in range(60)]
    found = answers(model, questions, ENDS, vocabulary=WORDS, batch_tokens=5000)
    ended = [said for said in found if said[-1] in ENDS]
    assert ended
    assert all(not ENDS & set(said[:-1]) for said in found)
    assert all(len(said) == LIMIT for said in found if said[-1] not in ENDS)


def test_first_tokens_follow_the_models_own_softmax(model: Any, prompts: list[list[int]]) -> None:
    questions = [Question(prompts[0], Draw(seed, 2.0, 1.0), 1) for seed in range(4000)]
    found = answers(model, questions, ENDS, vocabulary=WORDS, batch_tokens=60_000)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    expected = 4000 * (logits.double() / 2.0).softmax(-1)
    seen = torch.tensor([said[0] for said in found]).bincount(minlength=WORDS).double()
    often = expected >= 5
    gaps = [(seen - expected)[often], (seen - expected)[~often].sum().unsqueeze(0)]
    sizes = [expected[often], expected[~often].sum().unsqueeze(0)]
    chi_square = float((torch.cat(gaps).square() / torch.cat(sizes)).sum())
    freedom = int(often.sum())
    assert chi_square < freedom + 3.1 * (2 * freedom) ** 0.5 + 6  # the seed is fixed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_copy_leaves_the_student_as_it_is(model: Any, dtype: torch.dtype) -> None:
    student = copy.deepcopy(model).train()
    _trainable(student, DistillConfig(teacher="t", gradient_checkpointing=True))
    attention.use(student)
    made = frozen(student, dtype)
    assert student.training
    assert student.config._attn_implementation == attention.NAME
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not made.training
    assert made.config._attn_implementation != attention.NAME
    shared = [
        one.data_ptr() == other.data_ptr()
        for one, other in zip(made.parameters(), student.parameters(), strict=True)
    ]
    assert all(shared) if dtype == torch.float32 else not any(shared)
    assert {one.dtype for one in made.parameters()} == {dtype}
