"""Token ids and prompts in transformers and in llama.cpp: equal, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.errors import ModelError
from potstill.models import native
from potstill.models.load import load_tokenizer
from potstill.models.tokens import (
    REGEX_RULES,
    check_chat_template,
    mend_pre_tokenizer,
    separate_pad_from_eos,
    special_tokens,
    splitting_rule,
    token_parity,
)


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return load_tokenizer(tiny_folder)


def test_a_right_tokenizer_reads_every_text_as_llamacpp_does(
    tokenizer: Any, tiny_ggufs: dict[str, Path]
) -> None:
    report = token_parity(tokenizer, tiny_ggufs["f16"], ["Unit 7: 1250 litres <|im_end|>"])
    assert report.mismatches == ()
    assert report.texts > 40
    report.require("the tiny model")


def test_a_tokenizer_that_lost_its_digit_splitting_is_caught(
    tokenizer: Any, tiny_ggufs: dict[str, Path]
) -> None:
    assert mend_pre_tokenizer(tokenizer, "gpt-2")
    report = token_parity(tokenizer, tiny_ggufs["f16"])
    assert any(mismatch.text == "\n\n1" for mismatch in report.mismatches)
    with pytest.raises(ModelError, match=r"The file.*read \d+ of \d+ texts as different tokens"):
        report.require("The file")
    assert mend_pre_tokenizer(tokenizer, "smollm")
    assert token_parity(tokenizer, tiny_ggufs["f16"]).mismatches == ()


def test_another_chat_template_is_caught_and_shown(
    tokenizer: Any, tiny_ggufs: dict[str, Path]
) -> None:
    check_chat_template(tokenizer, tiny_ggufs["f16"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    with pytest.raises(ModelError, match="renders a user conversation differently"):
        check_chat_template(tokenizer, tiny_ggufs["f16"])


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_the_name_of_a_splitting_rule_is_read_back_from_its_structure(
    tokenizer: Any, rule: str
) -> None:
    assert mend_pre_tokenizer(tokenizer, rule)
    assert splitting_rule(tokenizer) == rule


def test_an_unknown_splitting_rule_has_no_name(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    assert not mend_pre_tokenizer(tokenizer, "rule-of-tomorrow")
    assert not mend_pre_tokenizer(tokenizer, None)
    for unknown in (
        pre_tokenizers.Whitespace(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)]),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("x", "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        ),
    ):
        tokenizer.backend_tokenizer.pre_tokenizer = unknown
        assert splitting_rule(tokenizer) is None


def test_the_regex_rules_cut_digits_as_their_models_do() -> None:
    from tokenizers import Regex, pre_tokenizers

    def cut(rule: str) -> list[str]:
        split = pre_tokenizers.Split(Regex(REGEX_RULES[rule]), behavior="isolated")
        return [piece for piece, _ in split.pre_tokenize_str("in 12345")]

    assert cut("llama-bpe") == ["in", " ", "123", "45"]  # Llama 3: up to three digits together
    assert cut("qwen2") == ["in", " ", "1", "2", "3", "4", "5"]  # Qwen 2: each digit alone


def test_the_pad_token_is_never_the_end_of_turn_token(tokenizer: Any) -> None:
    separate_pad_from_eos(tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"
    tokenizer.pad_token = tokenizer.eos_token
    separate_pad_from_eos(tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"
    tokenizer.pad_token = tokenizer.eos_token
    separate_pad_from_eos(tokenizer, model_ends=(tokenizer.convert_tokens_to_ids("<|endoftext|>"),))
    assert tokenizer.pad_token is None  # whatever needs one must fail loudly


def test_special_tokens_are_listed(tokenizer: Any) -> None:
    assert special_tokens(tokenizer) == ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]


def test_llamacpp_reports_a_truncated_file_in_one_line(
    tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_ggufs["f16"].read_bytes()[:-5000])
    with (
        pytest.raises(ModelError, match=r"llama\.cpp cannot score .*cut\.gguf"),
        native.scorer(cut, context=8, threads=1),
    ):
        pass
    with pytest.raises(ModelError, match=r"llama\.cpp cannot tokenize .*cut\.gguf"):
        native.tokenize(cut, ["a"], add_special=False)
