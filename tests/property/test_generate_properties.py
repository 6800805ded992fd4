"""Whatever the text: answers stand in it, forms accept their own sentence, fakes are accepted."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.generate.config import PromptConfig
from potstill.generate.focus import answer_spans, plan
from potstill.generate.questions import find_span, question_words, schema

LETTERS = "abcXYZ019 .,;:!?()[]{}|+*^$\\/\"'°é\n-"
texts = st.text(alphabet=LETTERS, min_size=1, max_size=200)
words = st.sampled_from(
    [
        "the",
        "lamp",
        "Maud",
        "Tarrant",
        "of",
        "burns",
        "46",
        "litres",
        "and",
        "in",
        "May",
        "K7",
        "is",
    ]
)
sentences = st.lists(words, min_size=3, max_size=14).map(lambda one: "It " + " ".join(one) + ".")


@given(texts)
def test_every_answer_stands_in_its_sentence_and_the_sentence_in_the_text(text: str) -> None:
    for task in plan(text, limit=20, min_words=1, max_answer_words=6):
        assert task.answer in task.focus
        assert task.answer.strip() == task.answer != ""
        assert find_span(text, task.focus, task.answer) is not None


@given(texts)
def test_every_pattern_compiles(text: str) -> None:
    for task in plan(text, limit=20, min_words=1, max_answer_words=6):
        for in_place in (False, True):
            fields = schema(PromptConfig(), task, in_place)["properties"]
            assert re.compile(fields["question"]["pattern"])
            assert re.compile(fields["reasoning"].get("pattern", ""))


@given(sentences)
@settings(max_examples=200)
def test_the_in_place_form_accepts_the_whole_sentence_with_each_question_word(text: str) -> None:
    for task in plan(text, limit=20, min_words=1, max_answer_words=6):
        form = schema(PromptConfig(), task, True)["properties"]
        before, _, after = task.focus.partition(task.answer)
        for asked in question_words(task):
            assert re.fullmatch(form["question"]["pattern"], f"{before}{asked}{after.rstrip('.')}?")
        assert re.fullmatch(form["reasoning"]["pattern"], task.focus)


@given(sentences, st.integers(1, 5))
def test_answers_keep_to_their_length(sentence: str, most: int) -> None:
    assert all(len(answer.split()) <= most for _, answer in answer_spans(sentence, most))


@given(texts, st.integers(1, 6))
def test_a_limit_is_kept_and_only_leaves_out(text: str, limit: int) -> None:
    some = plan(text, limit=limit, min_words=1, max_answer_words=6)
    every = plan(text, limit=1000, min_words=1, max_answer_words=6)
    assert len(some) == min(limit, len(every))
    answers = {(one.focus, one.answer) for one in every}
    assert {(one.focus, one.answer) for one in some} <= answers
    assert [one.index for one in some] == list(range(len(some)))
