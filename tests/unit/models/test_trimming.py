"""A cut vocabulary: the same model for the words that are kept, and every text still readable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import ModelError
from potstill.models.load import load_model, load_tokenizer
from potstill.models.surgery import parameters_of
from potstill.models.trimming import Trimmed, kept_tokens, trim_vocabulary

MakeModel = Callable[..., Path]
TEXTS = ("The boiler of unit 7 holds 1250 litres.", "Drain the boiler.\n\n3. Close the valve.")
TURNS = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "1250"}]


def ids_of(tokenizer: Any, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_student: MakeModel) -> Path:
    return make_student(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(scope="module")
def cut(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trimmed]:
    folder = tmp_path_factory.mktemp("cut") / "model"
    tokenizer = load_tokenizer(whole)
    conversation = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    return folder, trim_vocabulary(whole, [*ids_of(tokenizer), conversation], 310, folder)


def test_a_cut_model_says_of_the_kept_words_what_the_whole_one_says(
    whole: Path, cut: tuple[Path, Trimmed]
) -> None:
    folder, trimmed = cut
    old, new = load_tokenizer(whole), load_tokenizer(folder)
    kept = torch.tensor(trimmed.kept)
    assert len(new) == len(trimmed.kept) == 310
    assert trimmed.of == len(old) == 356
    models = load_model(whole), load_model(folder)
    for text in TEXTS:
        ids = [tokenizer.encode(text, return_tensors="pt") for tokenizer in (old, new)]
        assert kept[ids[1]].tolist() == ids[0].tolist()
        with torch.no_grad():
            said = [model(one).logits for model, one in zip(models, ids, strict=True)]
        torch.testing.assert_close(said[0][..., kept], said[1], atol=1e-5, rtol=0)
    assert parameters_of(models[0]) - parameters_of(models[1]) == trimmed.parameters == 46 * 64
    assert trimmed.read == trimmed.parameters  # tied: it is the output layer, too


def test_special_tokens_and_the_chat_template_come_along(
    whole: Path, cut: tuple[Path, Trimmed]
) -> None:
    old, new = load_tokenizer(whole), load_tokenizer(cut[0])
    assert (new.bos_token, new.eos_token, new.pad_token) == (
        old.bos_token,
        old.eos_token,
        old.pad_token,
    )
    model = load_model(cut[0])
    assert model.config.eos_token_id == new.eos_token_id
    assert model.config.vocab_size == len(new)
    first, second = (
        tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)
        for tokenizer in (old, new)
    )
    assert [cut[1].kept[number] for number in second] == first


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_every_text_is_still_read_and_written(cut: tuple[Path, Trimmed], text: str) -> None:
    tokenizer = load_cached(cut[0])
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def load_cached(folder: Path, known: dict[Path, Any] = {}) -> Any:  # noqa: B006
    if folder not in known:
        known[folder] = load_tokenizer(folder)
    return known[folder]


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from("the boiler valve unit notes drains 14 litres Keeper".split()))
)
def test_a_kept_text_is_cut_into_the_same_pieces(whole: Path, words: list[str]) -> None:
    """Whatever the text: all that its tokens are merged from is kept as well."""
    tokenizer = load_cached(whole)
    ids = tokenizer.encode(" ".join(words), add_special_tokens=False)
    kept = set(kept_tokens(tokenizer, [ids], 356))
    least = kept_tokens(tokenizer, [ids], len(kept_tokens(tokenizer, [ids], 356)))
    assert set(ids) <= kept
    assert least == sorted(least)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    made = {first + second: (first, second) for first, second in state["merges"]}
    names = {number: name for name, number in state["vocab"].items()}
    for number in kept:
        for part in made.get(names.get(number, ""), ()):
            assert state["vocab"][part] in kept


def test_pieces_with_bytes_for_other_signs(
    make_pieces: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    """As Gemma's: byte fallback, a BOS that is put before a text, an output layer of its own."""
    tokenizer = make_pieces()
    model = random_model(
        kind="llama", vocab_size=len(tokenizer), tie_word_embeddings=False, bos_token_id=2,
        eos_token_id=[1, 5], pad_token_id=0,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    old = load_tokenizer(tmp_path / "whole")
    rows = [old.encode("The boiler holds 1250 litres.")]
    trimmed = trim_vocabulary(tmp_path / "whole", rows, 320, tmp_path / "cut")
    new, smaller = load_tokenizer(tmp_path / "cut"), load_model(tmp_path / "cut")
    again = new.encode("The boiler holds 1250 litres.")
    assert [trimmed.kept[number] for number in again] == rows[0]
    assert again[0] == new.bos_token_id
    assert smaller.config.eos_token_id == [
        trimmed.kept.index(1),
        trimmed.kept.index(5),
    ]
    assert len(new) == 320
    words = len(old) - 320
    assert trimmed.parameters == 2 * words * model.config.hidden_size
    assert trimmed.read == words * model.config.hidden_size
    said = new.decode(new.encode("\u65e5 caf\u00e9", add_special_tokens=False))
    assert said.strip() == "\u65e5 caf\u00e9"


def test_rows_that_need_more_tokens_keep_them(whole: Path, tmp_path: Path) -> None:
    rows = ids_of(load_tokenizer(whole))
    trimmed = trim_vocabulary(whole, rows, 256, tmp_path / "cut")
    assert 256 < len(trimmed.kept) < 356
    assert {number for ids in rows for number in ids} <= set(trimmed.kept)


def test_other_kinds_of_tokenizers_are_refused(whole: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "boiler": 1}, unk_token="<unk>"))
    with pytest.raises(ModelError, match="this one is WordLevel"):
        kept_tokens(PreTrainedTokenizerFast(tokenizer_object=words), [[1]], 300)
    pairs = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with pytest.raises(ModelError, match="no tokens for bytes"):
        kept_tokens(PreTrainedTokenizerFast(tokenizer_object=pairs), [[1]], 300)


def test_a_special_token_that_nothing_uses_stays_in_the_table(
    make_pieces: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = make_pieces()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    random_model(
        kind="llama", vocab_size=len(tokenizer), tie_word_embeddings=False, bos_token_id=2,
    ).save_pretrained(tmp_path / "whole")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "whole")
    trimmed = trim_vocabulary(str(tmp_path / "whole"), [[5, 6]], 300, tmp_path / "cut")
    assert len(load_tokenizer(tmp_path / "cut")) == len(trimmed.kept)
