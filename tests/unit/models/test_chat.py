"""Conversations as ids: the prompt's border, the end token, the limit, templates that misbehave."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from potstill.errors import InputError, ModelError
from potstill.models.chat import check_template, encode_example
from potstill.recipe import Recipe, builtin_recipes
from potstill.records import Turn

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (Turn(role="user", content="Passage é.\n\nQ1?"), Turn(role="assistant", content="42 l"))


def byte_tokenizer(template: str | None = CHATML, eos: str | None = "<|im_end|>") -> Any:
    """One token a byte, plus the special tokens; decoding gives back any text exactly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "<s>"])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos)
    made.chat_template = template
    return made


def test_prompt_and_answer_join_to_the_template_up_to_the_end_of_turn() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_example(tokenizer, TURNS, 500)
    assert tokenizer.decode(encoded.prompt) == (
        "<|im_start|>user\nPassage é.\n\nQ1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encoded.answer) == "42 l<|im_end|>"
    assert encoded.answer[-1] == tokenizer.eos_token_id
    assert not encoded.truncated


def test_white_space_around_the_answer_does_not_move_the_border() -> None:
    padded = (TURNS[0], Turn(role="assistant", content="\n 42 l \n"))
    assert encode_example(byte_tokenizer(), padded, 500) == encode_example(
        byte_tokenizer(), TURNS, 500
    )


def test_too_long_is_flagged_and_stays_a_prefix_of_the_whole() -> None:
    tokenizer = byte_tokenizer()
    whole = encode_example(tokenizer, TURNS, 500)
    exact = encode_example(tokenizer, TURNS, len(whole.ids))
    assert exact == whole
    short = encode_example(tokenizer, TURNS, len(whole.ids) - 1)
    assert short.truncated
    assert short.ids == whole.ids[:-1]
    tiny = encode_example(tokenizer, TURNS, 3)
    assert (tiny.ids, tiny.answer_start, tiny.answer) == (whole.ids[:3], 3, [])


def test_a_template_that_ends_without_the_end_token_gets_one() -> None:
    bare = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    bare += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = byte_tokenizer(bare)
    assert tokenizer.decode(encode_example(tokenizer, TURNS, 500).answer) == "42 l<|im_end|>"


def test_without_a_template_the_plain_form_is_used() -> None:
    tokenizer = byte_tokenizer(None)
    turns = (Turn(role="system", content="Be brief."), *TURNS)
    encoded = encode_example(tokenizer, turns, 500)
    assert tokenizer.decode(encoded.prompt) == (
        "System: Be brief.\n\nUser: Passage é.\n\nQ1?\n\nAssistant:"
    )
    assert tokenizer.decode(encoded.answer) == " 42 l<|im_end|>"


def test_a_tokenizer_without_an_end_token_still_encodes() -> None:
    tokenizer = byte_tokenizer(None, eos=None)
    assert tokenizer.decode(encode_example(tokenizer, TURNS, 500).answer) == " 42 l"


def test_a_template_whose_prompt_is_no_prefix_is_refused() -> None:
    thinking = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    with pytest.raises(ModelError, match="not the start of the whole"):
        encode_example(byte_tokenizer(thinking), TURNS, 500)


def test_a_template_that_raises_is_a_model_error_with_its_words() -> None:
    refusing = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ModelError, match="System role not supported"):
        encode_example(byte_tokenizer(refusing), TURNS, 500)


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS[1:], TURNS[::-1]])
def test_a_conversation_that_does_not_end_in_an_answer_is_refused(turns: tuple[Turn, ...]) -> None:
    with pytest.raises(InputError, match="must end with the assistant"):
        encode_example(byte_tokenizer(), turns, 500)


QA = Recipe.load("gpt2-qa-local").template


def test_the_published_prompt_is_made_of_question_and_answer() -> None:
    tokenizer = byte_tokenizer(QA, eos="<s>")  # one token for both, as GPT-2 has it
    turns = (Turn(role="user", content="Who pays?"), Turn(role="assistant", content="The bank."))
    encoded = encode_example(tokenizer, turns, 500)
    assert tokenizer.decode(encoded.prompt) == "Question: Who pays?\nAnswer:"
    assert tokenizer.decode(encoded.answer) == " The bank.<s>"
    again = (*turns, Turn(role="user", content="When?"), Turn(role="assistant", content="Now."))
    prompt = tokenizer.decode(encode_example(tokenizer, again, 500).prompt)
    assert prompt == "Question: Who pays?\nAnswer: The bank.<s>Question: When?\nAnswer:"
    told = (Turn(role="system", content="Be brief."), *turns)
    prompt = tokenizer.decode(encode_example(tokenizer, told, 500).prompt)
    assert prompt == "Be brief.\n\nQuestion: Who pays?\nAnswer:"


@pytest.mark.parametrize("template", [QA, CHATML])
def test_a_usable_template_passes_before_anything_is_computed(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_the_templates_of_builtin_recipes_are_usable(name: str) -> None:
    if template := Recipe.load(name).template:
        check_template(template)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0].contents.x }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("Question?", "holds the question"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}\nSo:", "begins the whole"),
        (QA.replace("Answer:{% endif %}", "Reply:{% endif %}"), "must be what add_generation"),
    ],
)
def test_a_template_that_would_fail_later_is_refused_now(template: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_template(template)
    assert words in str(caught.value)
    assert "\n" not in caught.value.message
