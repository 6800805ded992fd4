"""Do transformers and llama.cpp read text as the same token ids, and prompt in the same words?

In: a tokenizer of transformers and a GGUF file. Out: reports of where the two differ; the mended
pre-tokenizer for a GGUF whose splitting rule transformers loses; a pad token that is not EOS.
Why it is checked on every model: a tokenizer that is subtly wrong fails nothing and spoils
everything that is trained through it. Knows nothing of weights.
"""

# ruff: noqa: RUF001 - unusual characters are the point of the texts below

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from potstill.errors import ModelError
from potstill.models import native

# The splitting rule of each `tokenizer.ggml.pre` name that is known for certain: llama.cpp,
# src/llama-vocab.cpp, and the tokenizer.json of the model that the name comes from.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
REGEX_RULES = {"llama-bpe": _LLAMA_3, "llama3": _LLAMA_3, "llama-v3": _LLAMA_3, "qwen2": _QWEN_2}
DIGIT_RULES = ("smollm",)
PLAIN_RULES = ("gpt-2",)

# Texts on which tokenizers are known to part ways.
NASTY_TEXTS = (
    "\n\n1",
    "1234567890 12 345 6,789.01 3.14e-10 0x1F 2024-02-29 ½ ² Ⅷ ٣٤ 二〇二四",
    "Line one\nLine two\r\nLine three\n\n\nLine six\n",
    "  two spaces   three    four\ttab\t\ttwo tabs \n \n  \n   end  ",
    " leading", "trailing ", " ", "\n", "\t", "   ", "\n\n\n\n",
    "\u00a0nbsp\u2003em\u3000ideographic",
    "I've you're he'll she'd it's DON'T we'Re 'tis rock'n'roll o'clock''s",
    "naïve façade Ångström œuvre straße İstanbul e\u0301 n\u0303 Zürich",
    "Привет, мир! Γειά σου κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี",
    "你好,世界。こんにちは 안녕",
    "🚀 (normal) 😶\u200d🌫️ ✅ 🦙🦙 👩\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 \ufe0f\u200b\u200d",
    "def f(x: int) -> dict[str, Any]:\n    return {'a': [1, 2], \"b\": x ** 2}  # done\n",
    "if (a != b && c <= d) { x += 0xFF; } /* ok */ // ---===***___",
    "https://example.org/a/b?c=1&d=%20e#f user@example.org C:\\path\\to\\file.txt $HOME/.bashrc",
    "<html><body class='x'>&amp; <|not_a_token|> <s> </s> [INST] <unk></body></html>",
    "......!!!!!!?????? --- ––– ——— ''' \"\"\" ``` ~~~ ### (((([[[[{{{{",
    "CamelCaseWord snake_case_word kebab-case-word ALLCAPS mixed123Digits45 a1b2c3",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "\u0000\u0001\u007f control \ufffd replacement \ue000 private \U0010ffff last",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3",
)  # fmt: skip
CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is 12 + 30?"},),
    (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "  Spaces, \n\nnewlines and {{ braces }} <b>.  "},
    ),
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. How can I help?"},
        {"role": "user", "content": "Name 3 colours, é and 日本 included."},
    ),
)
_ADDED_KINDS = (3, 4)  # GGUF token types: control, user-defined


@dataclass(frozen=True)
class Mismatch:
    """A text that the two read differently."""

    text: str
    transformers_ids: list[int]
    llamacpp_ids: list[int]


@dataclass(frozen=True)
class ParityReport:
    """How many texts were compared, and where the token ids differ."""

    texts: int
    mismatches: tuple[Mismatch, ...]

    def require(self, what: str) -> None:
        """Errors: ModelError that shows the shortest difference, if there is any."""
        if not self.mismatches:
            return
        first = min(self.mismatches, key=lambda one: len(one.text))
        raise ModelError(
            f"{what}: transformers and llama.cpp read {len(self.mismatches)} of {self.texts} texts "
            f"as different tokens, for example {first.text[:60]!r}: "
            f"{first.transformers_ids[:12]} against {first.llamacpp_ids[:12]}.",
            "Training through this tokenizer would teach the wrong tokens, so it is refused. "
            "Use the model's original Hugging Face folder or hub id.",
        )


def token_parity(tokenizer: Any, gguf_path: Path, texts: Sequence[str] = ()) -> ParityReport:
    """Compare the token ids of `NASTY_TEXTS`, of every special token, and of `texts`.

    Each text is read with and without the tokens that a tokenizer adds by itself (BOS, EOS).
    A tokenizer that normalises (NFC) is given normalised texts: llama.cpp does not normalise,
    which is a known difference of the engines and not a fault of the file.
    """
    special = [f"a {token}b{token}{token} c" for token in special_tokens(tokenizer)]
    wanted = list(dict.fromkeys(chain(NASTY_TEXTS, special, texts)))
    form = _normal_form(tokenizer)
    if form is not None:
        wanted = list(dict.fromkeys(unicodedata.normalize(form, text) for text in wanted))
    mismatches = []
    for add_special in (False, True):
        theirs = native.tokenize(gguf_path, wanted, add_special=add_special)
        for text, llamacpp_ids in zip(wanted, theirs, strict=True):
            ids = [int(one) for one in tokenizer(text, add_special_tokens=add_special).input_ids]
            if ids != llamacpp_ids:
                mismatches.append(Mismatch(text, ids, llamacpp_ids))
    return ParityReport(2 * len(wanted), tuple(mismatches))


def special_tokens(tokenizer: Any) -> list[str]:
    """Every token that is written as itself in a text, such as <|im_start|>; sorted."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({str(token.content) for token in added if str(token.content).strip()})


def check_chat_template(tokenizer: Any, gguf_path: Path) -> None:
    """Errors: ModelError if llama.cpp renders the model's chat template differently.

    A model without a template has nothing to compare. A conversation that both refuse (a
    template that knows no system role) is the same in both.
    """
    if not tokenizer.chat_template:
        return
    theirs = native.render(gguf_path, CONVERSATIONS)
    for messages, other in zip(CONVERSATIONS, theirs, strict=True):
        ours = _rendered(tokenizer, messages)
        # llama.cpp leaves out a BOS that its tokenizer adds anyway.
        bos = tokenizer.bos_token or ""
        same = ours == other or (ours is not None and bos and ours.removeprefix(bos) == other)
        if not same:
            roles = "/".join(message["role"] for message in messages)
            raise ModelError(
                f"The chat template of {gguf_path.name} renders a {roles} conversation differently "
                f"in transformers and llama.cpp: {_difference(ours, other)}.",
                "Teacher and student would be prompted in different words, so it is refused.",
            )


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str | None:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
        )
    except TemplateError:
        return None


def _difference(ours: str | None, other: str | None) -> str:
    if ours is None or other is None:
        return "only one of them refuses it"
    pairs = enumerate(zip(ours, other, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(other)))
    start = max(0, at - 15)
    return f"{ours[start : at + 25]!r} against {other[start : at + 25]!r}"


def mend_pre_tokenizer(tokenizer: Any, pre: str | None) -> bool:
    """Give the tokenizer the splitting rule that the GGUF names; True if the rule is known.

    transformers builds the tokenizer of a byte-level BPE GGUF by its architecture and ignores
    `tokenizer.ggml.pre`; for SmolLM2 that loses the splitting of digits.
    """
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel
    if pre in DIGIT_RULES:
        parts = [
            pre_tokenizers.Digits(individual_digits=True),
            byte_level(add_prefix_space=False, use_regex=True),
        ]
    elif pre in REGEX_RULES:
        parts = [
            pre_tokenizers.Split(Regex(REGEX_RULES[pre]), behavior="isolated", invert=False),
            byte_level(add_prefix_space=False, use_regex=False),
        ]
    elif pre in PLAIN_RULES:
        parts = [byte_level(add_prefix_space=False, use_regex=True)]
    else:
        return False
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return True


def splitting_rule(tokenizer: Any) -> str | None:
    """The `tokenizer.ggml.pre` name of the tokenizer's splitting rule, by its structure.

    None if it is none of the rules that are known here for certain.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    parts = state["pretokenizers"] if state.get("type") == "Sequence" else [state]
    kinds = [part.get("type") for part in parts]
    last = parts[-1]
    if kinds[-1] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and last.get("use_regex", True):
        return "smollm" if parts[0].get("individual_digits") else None
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        split = parts[0]
        pattern = split.get("pattern", {}).get("Regex")
        if split.get("behavior") == "Isolated" and not split.get("invert"):
            return next((name for name, rule in REGEX_RULES.items() if rule == pattern), None)
    return None


def separate_pad_from_eos(tokenizer: Any, model_ends: Sequence[int] = ()) -> None:
    """Give the tokenizer a pad token that no answer ends with, or none at all.

    A pad that equals EOS is masked out of the loss together with it by most collators, and the
    student never learns to stop. Taken in turn: a token that is named as padding, the
    unknown token, <|endoftext|>, a reserved token. Without any of them the pad stays unset, so
    that whatever needs one fails loudly.
    """
    ends = {tokenizer.eos_token_id, *model_ends}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return
    names = special_tokens(tokenizer)
    padding = [name for name in names if "pad" in name.lower()]
    reserved = [name for name in names if "reserved" in name.lower() or "unused" in name.lower()]
    unknown = [tokenizer.unk_token] if tokenizer.unk_token else []
    for name in [*padding, *unknown, "<|endoftext|>", *reserved]:
        token = tokenizer.convert_tokens_to_ids(name)
        known = name in names or name == tokenizer.unk_token
        if known and token is not None and token not in ends:
            tokenizer.pad_token = name
            return
    tokenizer.pad_token = None


def _normal_form(tokenizer: Any) -> Any:
    normalizer = getattr(tokenizer.backend_tokenizer, "normalizer", None)
    name = type(normalizer).__name__
    return name if name in ("NFC", "NFD", "NFKC", "NFKD") else None
