"""A model whose vocabulary is cut to the tokens that a domain needs.

In: a model's folder, texts as its token ids, a number of tokens. Out: a folder with the same model
less the other rows of its embedding and output layer, and a tokenizer that cuts those texts into
the same pieces. Only tokenizers by byte pairs (BPE) that can spell every text from bytes; any other
text can still be read and written, in more and smaller pieces. Knows nothing of training.

Small models carry most of their weights there: a fifth of SmolLM2-135M, two thirds of Gemma 3 270M.
After Abdaoui et al. 2020, "Load What You Need", arXiv:2010.05609.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.core.files import read_json, write_json
from potstill.errors import ModelError
from potstill.models.load import Source, load_model, load_tokenizer, quiet, tokenizer_in
from potstill.models.save import save_model
from potstill.models.surgery import parameters_of, unread_parameters

NAMED = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")
"""Fields of a configuration that are a token's id, or a list of them."""


@dataclass(frozen=True)
class Trimmed:
    """What was cut.

    kept: the old id of each new one, ascending. parameters, read: weights that went, tied ones
    once; and those of them that were read for every new token.
    """

    kept: tuple[int, ...]
    of: int
    parameters: int
    read: int


def trim_vocabulary(
    source: Source, texts: Iterable[Sequence[int]], tokens: int, folder: Path, template: str = ""
) -> Trimmed:
    """Write the model of `source` with so many tokens to `folder`, in the type it is stored in.

    texts: token ids, all of which are kept, if need be beyond `tokens`. template: a chat template
    instead of its own. A folder that is there already is left as it is.
    Errors: ModelError for a tokenizer of another kind.
    """
    record = folder.parent / f"{folder.name}.json"
    if not (record.exists() and folder.is_dir()):
        tokenizer = load_tokenizer(source, template)
        model = load_model(source, "auto").requires_grad_(False)
        needed = [*texts, _named(model)]
        kept = kept_tokens(tokenizer, needed, tokens)
        before, of = _sizes(model), len(model.get_input_embeddings().weight)
        _trim_model(model, kept)
        gone = [old - new for old, new in zip(before, _sizes(model), strict=True)]
        write_json(record, {"kept": kept, "of": of, "parameters": gone[0], "read": gone[1]})
        save_model(model, _trimmed_tokenizer(tokenizer, kept), folder)
    found = read_json(record)
    return Trimmed(tuple(found["kept"]), found["of"], found["parameters"], found["read"])


def kept_tokens(tokenizer: Any, rows: Iterable[Sequence[int]], tokens: int) -> list[int]:
    """Ids to keep, ascending: those of the rows, what they are merged from, all bytes, the special
    tokens that the model or its chat template names; then the earliest merges, which are those of
    the most frequent words, up to `tokens`. More only if the rows need more.

    Errors: ModelError for a tokenizer that is not of byte pairs with all bytes.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    core = state["model"]
    if core["type"] != "BPE":
        raise ModelError(
            f"Only vocabularies of byte pairs (BPE) can be cut; this one is {core['type']}.",
            "Leave distill.student.vocabulary out.",
        )
    known: dict[str, int] = core["vocab"]
    merges = [_pair(merge) for merge in core["merges"]]
    parts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for first, second in merges:
        parts[first + second].append((first, second))
    kept: set[int] = set()

    def keep(name: str) -> None:
        """A token, and all that it may be merged from: else the texts would be cut elsewhere."""
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one in known and known[one] not in kept:
                kept.add(known[one])
                waiting += [part for pair in parts[one] for part in pair]

    names = {number: name for name, number in known.items()}
    for name in _bytes(state):
        keep(name)
    said = str(tokenizer.chat_template or "")
    # One that its settings name and its table lacks would be added anew, behind the last row.
    special = set(tokenizer.all_special_tokens)
    for added in state["added_tokens"]:
        if added["content"] in special or added["content"] in said:
            kept.add(added["id"])
    for number in {number for ids in rows for number in ids}:
        if number in names:
            keep(names[number])
        kept.add(number)
    for first, second in merges:
        if len(kept) >= tokens:
            break
        both = known.get(first) in kept and known.get(second) in kept
        if both and first + second in known:
            kept.add(known[first + second])
    return sorted(kept)


def _bytes(state: dict[str, Any]) -> list[str]:
    """The tokens of single bytes: `<0x00>` and on, or one sign for each. Some tokenizers lack bytes
    that their makers never met."""
    from tokenizers.pre_tokenizers import ByteLevel

    decoder = state.get("decoder") or {}
    steps = [decoder, *decoder.get("decoders", [])]
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if any(step.get("type") == "ByteLevel" for step in steps):
        names = ByteLevel.alphabet()
    found = [name for name in names if name in state["model"]["vocab"]]
    if not found:
        raise ModelError(
            "This tokenizer has no tokens for bytes, so a text of other words could not be read.",
            "Leave distill.student.vocabulary out.",
        )
    return found


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _trimmed_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """The tokenizer with new ids: the place of each token in `kept`."""
    new = {old: place for place, old in enumerate(kept)}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    core = state["model"]
    core["vocab"] = {name: new[old] for name, old in core["vocab"].items() if old in new}
    core["merges"] = [
        pair
        for pair in (_pair(merge) for merge in core["merges"])
        if all(name in core["vocab"] for name in (*pair, "".join(pair)))
    ]
    state["added_tokens"] = [
        added | {"id": new[added["id"]]} for added in state["added_tokens"] if added["id"] in new
    ]
    _renumber(state.get("post_processor"), new)
    with tempfile.TemporaryDirectory() as place, quiet():
        tokenizer.save_pretrained(place)
        write_json(Path(place) / "tokenizer.json", state)
        settings = read_json(Path(place) / "tokenizer_config.json")
        settings.pop("added_tokens_decoder", None)  # old ids; tokenizer.json has the new ones
        write_json(Path(place) / "tokenizer_config.json", settings)
        return tokenizer_in(Path(place))


def _renumber(value: Any, new: dict[int, int]) -> None:
    """The ids of special tokens that are put around a text, wherever they stand."""
    for part in value.values() if isinstance(value, dict) else value or ():
        if isinstance(part, dict):
            if isinstance(part.get("ids"), list):
                part["ids"] = [new[old] for old in part["ids"]]
            _renumber(part, new)
        elif isinstance(part, list):
            _renumber([one for one in part if isinstance(one, dict)], new)


def _trim_model(model: Any, kept: Sequence[int]) -> None:
    """In place: the rows of the kept tokens alone, and their ids in the configurations."""
    rows = torch.tensor(kept)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is embedding.weight
    for layer in (embedding,) if tied or output is None else (embedding, output):
        layer.weight = torch.nn.Parameter(layer.weight.detach()[rows], requires_grad=False)
    if tied:
        output.weight = embedding.weight
    embedding.num_embeddings = len(kept)
    embedding.padding_idx = None
    if output is not None:
        output.out_features = len(kept)
        if getattr(output, "bias", None) is not None:
            output.bias = torch.nn.Parameter(output.bias.detach()[rows], requires_grad=False)
    new = {old: place for place, old in enumerate(kept)}
    model.config.get_text_config().vocab_size = len(kept)
    for config in _configs(model):
        for name in NAMED:
            value = getattr(config, name, None)
            if isinstance(value, list):
                setattr(config, name, [new[one] for one in value])
            elif value is not None:
                setattr(config, name, new[value])


def _named(model: Any) -> list[int]:
    """The ids that the model's configurations name."""
    values = [getattr(config, name, None) for config in _configs(model) for name in NAMED]
    return [
        one
        for value in values
        for one in (value if isinstance(value, list) else [value])
        if one is not None
    ]


def _configs(model: Any) -> list[Any]:
    """Each once: the text part's may be the model's own."""
    text = model.config.get_text_config()
    found = [model.config, *([] if text is model.config else [text]), model.generation_config]
    return [one for one in found if one is not None]


def _sizes(model: Any) -> tuple[int, int]:
    """All weights, tied ones once; and those that are read for one new token."""
    total = parameters_of(model)
    return total, total - unread_parameters(model)
