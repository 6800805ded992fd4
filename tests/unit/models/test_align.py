"""Two tokenizers on one conversation: the spans stand for the same bytes, and cover the words."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from potstill.errors import ModelError
from potstill.models.align import Aligned, Aligner, token_boundaries, words_of
from potstill.models.chat import ChangedWordsError, encode_example, render_example
from potstill.models.load import load_tokenizer
from potstill.records import Turn

LIMIT = 1 << 20
NASTY = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs",)),
        st.sampled_from(" \n\t\x00\x7fé日本🦙👩\u200d👧\u0301\u0327\u202eשלוםمرحبا\u00a0\ufeffﬁÅ①"),  # noqa: RUF001
    ),
    min_size=1,
    max_size=40,
)


def conversation(question: str, answer: str) -> tuple[Turn, ...]:
    return (Turn(role="user", content=question), Turn(role="assistant", content=answer))


@pytest.fixture(scope="module")
def llama(tiny_folder: Path) -> Any:
    """Byte-level BPE with ChatML."""
    return load_tokenizer(tiny_folder)


@pytest.fixture(scope="module")
def gemma(make_pieces: Callable[..., Any]) -> Any:
    """SentencePiece with BOS and Gemma's template."""
    return make_pieces()


@pytest.fixture(scope="module")
def plain(make_pieces: Callable[..., Any]) -> Any:
    """The same without a template, so that the plain form is used."""
    return make_pieces(None)


def texts(tokenizer: Any, ids: list[int], tokens: tuple[int, int]) -> bytes:
    known = words_of(tokenizer)
    return b"".join(known.text[one] or b"" for one in ids[slice(*tokens)])


def check(one: Any, other: Any, turns: tuple[Turn, ...]) -> Aligned:
    """Spans ascend, do not overlap, and both sides' tokens stand for the same bytes."""
    aligner = Aligner(one, other)
    encoded, found = aligner.example(turns, LIMIT)
    ends = (0, 0)
    for span in found.spans:
        assert span.first[0] >= ends[0]
        assert span.second[0] >= ends[1]
        assert span.first[0] < span.first[1]
        assert span.second[0] < span.second[1]
        ends = (span.first[1], span.second[1])
        ours, theirs = (
            texts(tokenizer, side.ids, tokens)
            for tokenizer, side, tokens in zip(
                (one, other), encoded, (span.first, span.second), strict=True
            )
        )
        if span.size:
            assert ours.strip() == theirs.strip()
            assert ours.removeprefix(span.leads[0]) == theirs.removeprefix(span.leads[1])
            assert len(ours.removeprefix(span.leads[0])) == span.size
        inside = [start >= side.answer_start for start, side in zip(
            (span.first[0], span.second[0]), encoded, strict=True
        )]  # fmt: skip
        assert inside == [span.answer] * 2
    return found


def test_the_readme_case_piece_by_piece(llama: Any, gemma: Any) -> None:
    turns = conversation("Unit 7?", "1250 litres")
    encoded, found = Aligner(llama, gemma).example(turns, LIMIT)
    said = [texts(llama, encoded[0].ids, span.first) for span in found.spans]
    assert b"".join(said) == b"Unit 7?1250 litres<|im_end|>"
    last = found.spans[-1]
    assert (encoded[0].ids[last.first[0]], encoded[1].ids[last.second[0]]) == (
        llama.eos_token_id,
        gemma.eos_token_id,
    )
    assert last.size == 0
    assert found.share == 1.0
    assert found.size == len("Unit 7?1250 litres")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(question=NASTY, answer=NASTY)
def test_nearly_all_bytes_of_any_text_are_aligned(
    llama: Any, gemma: Any, plain: Any, question: str, answer: str
) -> None:
    turns = conversation(question, answer)
    for one, other in ((llama, gemma), (plain, llama)):
        found = check(one, other, turns)
        assert found.size == len(question.strip().encode()) + len(answer.strip().encode())
        assert found.size == 0 or found.share >= 0.99


def test_a_character_that_one_side_splits_is_one_span(llama: Any, gemma: Any) -> None:
    """Both split it into bytes here: four tokens a side, so four spans, each of one byte."""
    _, found = Aligner(llama, gemma).example(conversation("🦙", "日"), LIMIT)
    assert [span.size for span in found.spans] == [1, 1, 1, 1, 3, 0]
    assert found.spans[4].first[1] - found.spans[4].first[0] == 3  # bytes, against a piece
    assert found.spans[4].second[1] - found.spans[4].second[0] == 1


def test_a_space_of_the_template_in_the_first_token_belongs_to_the_word(
    llama: Any, plain: Any
) -> None:
    encoded, found = Aligner(plain, llama).example(conversation("The valve", "The log"), LIMIT)
    first = next(span for span in found.spans if span.answer)
    assert first.leads == (b" ", b"")
    assert texts(plain, encoded[0].ids, first.first).startswith(b" T")
    assert texts(llama, encoded[1].ids, first.second).startswith(b"T")


@pytest.mark.parametrize(("form", "text"), [("NFC", "cafe\u0301 e\u0301"), ("NFKC", "oﬁce ① Å")])
def test_a_tokenizer_that_changes_unicode_forms_is_found_again(
    llama: Any, make_pieces: Callable[..., Any], form: str, text: str
) -> None:
    """What it changed is one span, with the characters that it was made of on the other side."""
    changed = make_pieces(form=form)
    turns = conversation(f"The keeper {text} notes the time.", "The boiler holds 1250 litres.")
    _, found = Aligner(llama, changed).example(turns, LIMIT)
    assert found.share >= 0.99
    assert sum(span.answer for span in found.spans) > 5


def test_a_space_that_a_tokenizer_puts_before_a_text(
    llama: Any, make_pieces: Callable[..., Any]
) -> None:
    _, found = Aligner(llama, make_pieces(None, prefix=True)).example(
        conversation("The valve opens.", "unit 7"), LIMIT
    )
    assert found.share == 1.0


def test_rows_that_are_cut_are_aligned_up_to_the_cut(llama: Any, gemma: Any) -> None:
    turns = conversation("The boiler of unit 7 holds 1250 litres. " * 5, "unit 7")
    encoded, found = Aligner(llama, gemma).example(turns, 40)
    assert encoded[0].truncated
    assert 0 < found.size < 200
    assert found.share >= 0.9
    assert not any(span.answer for span in found.spans)
    assert max(span.first[1] for span in found.spans) <= 40


def test_a_bare_text_has_no_answer(llama: Any, gemma: Any) -> None:
    text = "  The valve opens.\n"
    ids = [[*one(text).input_ids, one.eos_token_id] for one in (llama, gemma)]
    found = Aligner(llama, gemma).text(ids, text)
    assert found.size == len("The valve opens.")
    assert found.share == 1.0
    assert not any(span.answer for span in found.spans)


def test_one_tokenizer_on_both_sides_aligns_every_token(llama: Any) -> None:
    encoded, found = Aligner(llama, llama).example(conversation("Drain it.", "unit 7"), LIMIT)
    assert all(span.first == span.second for span in found.spans)
    assert all(span.first[1] - span.first[0] == 1 for span in found.spans)
    answer = [span.first[0] for span in found.spans if span.answer]
    assert answer == list(range(encoded[0].answer_start, len(encoded[0].ids)))


def test_boundaries_of_special_tokens_that_are_no_text_have_no_length(gemma: Any) -> None:
    ids = gemma("The log").input_ids
    assert ids[0] == gemma.bos_token_id
    found = token_boundaries(ids, words_of(gemma), b"The log")
    assert found[:2] == [0, 0]
    assert found[-1] == 7


def test_bytes_of_every_token(llama: Any, gemma: Any) -> None:
    text = "\n\n1. Open the valve é日本🦙"
    for tokenizer in (llama, gemma):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert texts(tokenizer, ids, (0, len(ids))) == text.encode()
    assert words_of(gemma).ends == {gemma.eos_token_id}
    assert gemma.bos_token_id in words_of(gemma).special


def test_a_tokenizer_whose_tokens_are_no_bytes_is_one_clear_error() -> None:
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    with pytest.raises(ModelError, match="cannot be read as bytes"):
        words_of(made)


def test_a_template_that_changes_the_words_is_said_to(
    llama: Any, make_pieces: Callable[..., Any]
) -> None:
    loud = make_pieces("{% for m in messages %}{{ m['content'] | upper }}<end_of_turn>{% endfor %}")
    with pytest.raises(ChangedWordsError, match="changes the words of turn 1"):
        render_example(loud, conversation("small", "words"))


@pytest.mark.parametrize("template", ["chat", "none"])
def test_what_is_rendered_is_what_is_encoded(llama: Any, plain: Any, template: str) -> None:
    tokenizer = llama if template == "chat" else plain
    turns = conversation(" Drain {{ it }}. \n", " The log ")
    rendered = render_example(tokenizer, turns)
    words = [rendered.text[start:end] for start, end in rendered.contents]
    assert words == ["Drain {{ it }}.", "The log"]
    said = texts(tokenizer, encode_example(tokenizer, turns, LIMIT).ids, (0, LIMIT)).decode()
    for name in ("<bos>", "<eos>"):
        said = said.replace(name, "")
    assert rendered.text.startswith(said)


@pytest.mark.parametrize("lost", ["answer", "question"])
def test_text_in_which_a_tokenizer_loses_its_way_counts_as_not_aligned(
    llama: Any, make_pieces: Callable[..., Any], lost: str
) -> None:
    """Not as text that was cut off, whose bytes nobody asks for."""
    changed = make_pieces(form="NFC")
    strange = unicodedata.normalize("NFD", "한국어문장은여기에있습니다그리고계속" * 6)
    question, answer = f"The boiler {strange}", "unit 7"
    if lost == "answer":
        question, answer = "The boiler", f"unit 7 {strange}"
    for one, other in ((llama, changed), (changed, llama)):
        aligner = Aligner(one, other)
        encoded, found = aligner.example(conversation(question, answer), LIMIT)
        assert not any(side.truncated for side in encoded)
        assert found.size == len(f"{question}{answer}".encode())
        assert found.share < 0.1
    # Cut by one side behind the place: what that side still holds is not aligned either.
    limit = len(llama(strange).input_ids) // 2
    encoded, found = Aligner(llama, changed).example(conversation(question, answer), limit)
    assert encoded[0].truncated
    assert found.share < 0.3
