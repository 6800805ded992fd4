"""Whatever the passage: what stands in it is found and supported, spans are of its text."""

from __future__ import annotations

import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from potstill.generate.grounding import locate, sentences, support
from potstill.generate.words import normal, numbers, same_word, tokens

WORDS = (
    "the lamp of Skerry Point burns 46 litres a week because its wick is wide and Tove Lind's "
    "brine runs at 3.5 bar while Öl fließt über die Brücke and 灯台 stands"
).split()
passages = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=4, max_size=12).map(lambda one: " ".join(one)),
    min_size=1,
    max_size=6,
).map(lambda parts: ". ".join(part[:1].upper() + part[1:] for part in parts) + ".")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=120)


@given(passages, st.randoms(use_true_random=False))
def test_any_run_of_words_is_found_where_it_stands(passage: str, lot: random.Random) -> None:
    words = passage.split()
    start = lot.randrange(len(words))
    quote = " ".join(words[start : start + lot.randint(1, 8)])
    found = locate(passage, quote)
    assert found is not None
    assert found.how == "exact"
    assert passage[found.span.start : found.span.end].split() == quote.split()
    shouted = locate(passage, quote.upper() + " !!")
    assert shouted is not None
    span = passage[shouted.span.start : shouted.span.end]
    assert normal(span.casefold()) == normal(quote.upper().casefold())


@given(passages)
def test_every_sentence_supports_itself(passage: str) -> None:
    for span in sentences(passage):
        said = passage[span.start : span.end]
        assume(normal(said))
        found = support(passage, "What is said?", said, said)
        assert found.span.start >= 0
        assert found.span.end <= len(passage)
        assert passage[found.span.start : found.span.end].strip()


@given(texts, texts)
@settings(max_examples=300)
def test_any_texts_are_compared_without_a_fault(passage: str, quote: str) -> None:
    found = locate(passage, quote)
    if found is not None:
        assert 0 <= found.span.start < found.span.end <= len(passage)
    numbers(passage)
    for one, other in zip(tokens(passage), tokens(quote), strict=False):
        assert same_word(one, other) == same_word(other, one)
        assert same_word(one, one)
