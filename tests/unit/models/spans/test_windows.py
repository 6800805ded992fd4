"""Windows over a passage: nothing is lost between them, and characters find their tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_models import WORDS, word_tokenizer

from potstill.errors import InputError, ModelError
from potstill.models.spans.windows import MAX_QUESTION_TOKENS, encode

TOKENIZER = word_tokenizer()


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=60),
    room=st.integers(2, 20),
    data=st.data(),
)
def test_windows_hold_every_token_in_its_order(
    words: list[str], room: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    passage = "  ".join(words)
    found = encode(TOKENIZER, "when is", passage, room + 5, overlap)
    ids = TOKENIZER(passage, add_special_tokens=False).input_ids
    assert [passage[start:end] for start, end in found.offsets] == words
    seen: set[int] = set()
    for window in found.windows:
        own = window.ids[window.at : window.at + window.count]
        assert list(own) == ids[window.first : window.first + window.count]
        assert len(window.ids) <= room + 5
        assert window.ids[0] == TOKENIZER.cls_token_id
        seen |= set(range(window.first, window.first + window.count))
    assert seen == set(range(len(words)))
    for before, after in zip(found.windows, found.windows[1:], strict=False):
        assert before.first + before.count - after.first == overlap


def test_characters_find_the_tokens_that_they_belong_to() -> None:
    passage = "the boiler holds litres"
    found = encode(TOKENIZER, "what", passage, 32, 0)
    assert found.tokens_of(4, 10) == (1, 1)
    assert found.tokens_of(5, 12) == (1, 2)  # parts of words: the whole of both
    assert found.tokens_of(0, len(passage)) == (0, 3)
    assert found.tokens_of(3, 4) is None  # the space alone
    assert found.windows[0].place(1, 2) == (found.windows[0].at + 1, found.windows[0].at + 2)


def test_a_span_that_a_window_does_not_hold_whole_is_nowhere_in_it() -> None:
    found = encode(TOKENIZER, "what", "the boiler of unit holds litres", 7, 1)
    first, second = found.windows[:2]
    assert first.count == 3
    assert first.place(2, 3) == (0, 0)
    assert second.place(2, 3) == (second.at, second.at + 1)


def test_a_long_question_is_cut_and_one_without_room_refused() -> None:
    long = " ".join(["what"] * 100)
    found = encode(TOKENIZER, long, "the boiler", MAX_QUESTION_TOKENS + 10, 2)
    assert found.windows[0].at == MAX_QUESTION_TOKENS + 2
    with pytest.raises(InputError, match="no room for a passage"):
        encode(TOKENIZER, long, "the boiler", MAX_QUESTION_TOKENS + 3, 2)


def test_a_tokenizer_that_begins_otherwise_is_refused() -> None:
    from tokenizers import processors

    other = word_tokenizer()
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B:1 [SEP]:1", special_tokens=[("[SEP]", 3)]
    )
    with pytest.raises(ModelError, match="do not begin with its classification token"):
        encode(other, "what", "the boiler", 16, 2)
