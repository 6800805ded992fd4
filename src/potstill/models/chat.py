"""A conversation as token ids, and where in them the answer starts.

In: a tokenizer and the turns of one example. Out: `EncodedExample`. Training, evaluation and
export all come through here, so that no two of them prompt a model differently.
Knows nothing of losses, masks or batches. Does not import torch.

With a chat template, the prompt is the template's rendering of all turns but the last with its
generation prompt, and the whole is its rendering of all turns. Without one, the plain form is

    System: ...            (one line a turn, in order; each followed by a blank line)

    User: ...

    Assistant: the answer<EOS>

The answer ends with the end-of-turn token: a student that never sees it never learns to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potstill.errors import InputError, ModelError
from potstill.records import Turn

MARK = "Is it so?"
"""A question, to see where a template puts it."""


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one conversation. `ids[:answer_start]` is exactly what generation is given.

    `truncated`: it was longer than the limit and its end is cut off. Then `ids` is still a true
    prefix of the conversation (the passage keeps its start), but the answer is not whole, and
    `answer_start` may equal `len(ids)`. The caller counts such rows and says so.
    """

    ids: list[int]
    answer_start: int
    truncated: bool

    @property
    def prompt(self) -> list[int]:
        """The ids before the answer, the generation prompt included."""
        return self.ids[: self.answer_start]

    @property
    def answer(self) -> list[int]:
        """The answer's ids, ending in the end-of-turn token unless truncated."""
        return self.ids[self.answer_start :]


class ChangedWordsError(ModelError):
    """A template does not write a turn's words as they are."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, without what a tokenizer adds by itself (BOS, EOS).

    `contents`: where each turn's own words stand in `text`, in characters, without the white space
    around them. Everything else is the template's.
    """

    text: str
    contents: tuple[tuple[int, int], ...]


def render_example(tokenizer: Any, turns: Sequence[Turn]) -> Rendered:
    """The text that `encode_example` encodes, and where in it the turns' own words stand.

    Errors: those of `encode_example`, and ChangedWordsError if the template changes more than white
    space around the words, so that it cannot be told where they are.
    """
    messages = _messages(turns)
    if getattr(tokenizer, "chat_template", None):
        stand_ins = [{**one, "content": f"\ue000{n}\ue001"} for n, one in enumerate(messages)]
        text, pattern = (_whole_text(tokenizer, some) for some in (messages, stand_ins))
        pieces = []
        for one in stand_ins:
            piece, _, pattern = pattern.partition(one["content"])
            pieces.append(piece)
        pieces.append(pattern)
    else:
        heads = [f"{message['role'].capitalize()}: " for message in messages]
        pieces = [heads[0], *("\n\n" + head for head in heads[1:]), ""]
        contents = (message["content"] for message in messages)
        text = "".join(a + b for a, b in zip(pieces, contents, strict=False))
    found, position = [], 0
    for number, message in enumerate(messages):
        position += len(pieces[number])
        content, after = message["content"], pieces[number + 1]
        for form in (content, content.strip(), content.lstrip(), content.rstrip()):
            if text.startswith(form + after, position):
                break
        else:
            raise ChangedWordsError(
                f"The chat template changes the words of turn {number + 1}, so they cannot be "
                "found in what it renders.",
                "Use a template that writes the turns as they are.",
            )
        start = position + len(form) - len(form.lstrip())
        found.append((start, start + len(form.strip())))
        position += len(form)
    return Rendered(text, tuple(found))


def encode_example(tokenizer: Any, turns: Sequence[Turn], max_tokens: int) -> EncodedExample:
    """Encode a conversation whose last turn is the answer.

    tokenizer: a transformers tokenizer. max_tokens: the limit of the whole, in tokens.
    White space around the answer is dropped: it would merge with the template's own.
    Errors: InputError if the last turn is not the assistant's or nothing comes before it;
    ModelError if the template refuses the turns, or renders them so that the prompt is not a
    prefix of the whole, in text or in ids.
    """
    messages = _messages(turns)
    if getattr(tokenizer, "chat_template", None):
        prompt, ids = _by_template(tokenizer, messages)
    else:
        prompt, ids = _plainly(tokenizer, messages)
    return EncodedExample(
        ids=ids[:max_tokens],
        answer_start=min(len(prompt), max_tokens),
        truncated=len(ids) > max_tokens,
    )


def check_template(template: str) -> None:
    """What can be told of a chat template without a tokenizer, before anything is computed.

    Errors: ModelError for what is no Jinja, and for a template that leaves a question out, or whose
    prompt is not how the whole conversation begins.
    """
    messages = [
        {"role": role, "content": word} for role, word in (("user", MARK), ("assistant", "a"))
    ]
    try:
        # As transformers sets it up; what it adds besides is not used here.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        made = environment.from_string(template)
        said = {"eos_token": "<end>", "bos_token": ""}
        prompt = made.render(messages=messages[:1], add_generation_prompt=True, **said)
        whole = made.render(messages=messages, add_generation_prompt=False, **said)
    # A template may fail as any code can: divide by nothing, add what cannot be added.
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        raise ModelError(
            f"The template cannot be used: {type(error).__name__}: {error}.",
            "It is Jinja over messages, add_generation_prompt, bos_token and eos_token.",
        ) from error
    if MARK not in prompt or not whole.startswith(prompt) or whole == prompt:
        raise ModelError(
            "The template does not make a prompt that holds the question and begins the whole "
            f"conversation: {prompt!r} and {whole!r}.",
            "What it writes before an answer must be what add_generation_prompt adds.",
        )


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise InputError("An example must end with the assistant's answer to an earlier turn.")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    messages[-1]["content"] = messages[-1]["content"].strip()
    return messages


def _whole_text(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        raise _refused(error) from error


def _refused(error: TemplateError) -> ModelError:
    return ModelError(
        f"The model's chat template refuses this conversation: {error}.",
        "Check the order of the roles, or use a model whose template knows them.",
    )


def _by_template(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Prompt ids and whole ids as the tokenizer's own chat template renders them."""
    try:
        prompt_text = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise _refused(error) from error
    whole_text = _whole_text(tokenizer, messages)
    prompt, whole = _ids(tokenizer, prompt_text), _ids(tokenizer, whole_text)
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise ModelError(
            "The model's chat template renders a prompt that is not the start of the whole "
            "conversation, so the answer's tokens cannot be told from the prompt's.",
            "Use a template whose generation prompt equals what it puts before an answer.",
        )
    return prompt, _ended(tokenizer, whole, len(prompt))


def _plainly(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Prompt ids and whole ids in the plain form of this file's header."""
    blocks = [f"{message['role'].capitalize()}: {message['content']}" for message in messages[:-1]]
    start = tokenizer.bos_token_id
    begins_with_start = start is not None and list(tokenizer("").input_ids)[:1] == [start]
    prompt = [start] if begins_with_start else []
    prompt += _ids(tokenizer, "\n\n".join([*blocks, "Assistant:"]))
    whole = prompt + _ids(tokenizer, " " + messages[-1]["content"])
    return prompt, _ended(tokenizer, whole, len(prompt))


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that already holds its special tokens; nothing is added around it."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False).input_ids]


def _ended(tokenizer: Any, whole: list[int], answer_start: int) -> list[int]:
    """The ids up to and with the last end token; the tokenizer's EOS is added if there is none.

    Templates often write a line break after the end-of-turn token. Nobody generates it, so it
    is no part of the answer.
    """
    end = tokenizer.eos_token_id
    if end is None:
        return whole
    for position in range(len(whole) - 1, answer_start - 1, -1):
        if whole[position] == end:
            return whole[: position + 1]
    return [*whole, int(end)]
