"""Replies as teachers really spoil them: good JSON, and many ways to break it that lose nothing.

In: rows. Out: texts from which every row can still be read, or, where the end is cut off, all but
the last. Not a test; the tests of `repair` and its benchmark share it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

Rows = Sequence[dict[str, str]]


def clean(rows: Rows) -> str:
    return json.dumps({"pairs": list(rows)}, ensure_ascii=False)


def pretty(rows: Rows) -> str:
    return json.dumps({"pairs": list(rows)}, ensure_ascii=False, indent=2)


def single_quoted(rows: Rows) -> str:
    return repr({"pairs": [dict(row) for row in rows]})


def unquoted_keys(rows: Rows) -> str:
    return re.sub(r'"(\w+)":', r"\1:", clean(rows))


def trailing_commas(rows: Rows) -> str:
    return re.sub(r"\n(\s*)([}\]])", r",\n\1\2", pretty(rows))


def missing_commas(rows: Rows) -> str:
    return pretty(rows).replace("},\n", "}\n")


def missing_end(rows: Rows) -> str:
    return clean(rows).removesuffix("}").removesuffix("]")


def comments(rows: Rows) -> str:
    return pretty(rows).replace('"pairs": [', '"pairs": [ // the pairs', 1)


def raw_newlines(rows: Rows) -> str:
    return clean(rows).replace(". ", ".\n").replace("\\n", "\n")


def inner_quotes(rows: Rows) -> str:
    spoken = [{**row, "answer": f'the "{row["answer"]}" kind'} for row in rows]
    return clean(spoken).replace('\\"', '"')


def bare_list(rows: Rows) -> str:
    return json.dumps(list(rows), ensure_ascii=False)


def one_a_line(rows: Rows) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def numbered(rows: Rows) -> str:
    return json.dumps({str(n): row for n, row in enumerate(rows, 1)}, ensure_ascii=False)


def other_list(rows: Rows) -> str:
    return json.dumps({"qa_pairs": list(rows)}, ensure_ascii=False)


def wrapped_twice(rows: Rows) -> str:
    return json.dumps({"result": {"pairs": list(rows)}}, ensure_ascii=False)


def inside_a_string(rows: Rows) -> str:
    return json.dumps(clean(rows))


def list_in_a_string(rows: Rows) -> str:
    return json.dumps({"pairs": json.dumps(list(rows))})


def other_keys(rows: Rows) -> str:
    text = clean(rows)
    return text.replace('"question":', '"Question":').replace('"reasoning":', '"explanation":')


def answers_in_lists(rows: Rows) -> str:
    return json.dumps({"pairs": [{**row, "answer": [row["answer"]]} for row in rows]})


def answers_in_objects(rows: Rows) -> str:
    return json.dumps({"pairs": [{**row, "answer": {"text": row["answer"]}} for row in rows]})


def python_words(rows: Rows) -> str:
    return repr({"pairs": [{**row, "sure": True, "note": None} for row in rows]})


def smart_spaces(rows: Rows) -> str:
    return "\ufeff\u200b" + pretty(rows).replace("\n", "\r\n")


FORMS: dict[str, Callable[[Rows], str]] = {
    form.__name__: form
    for form in (
        clean, pretty, single_quoted, unquoted_keys, trailing_commas, missing_commas, missing_end,
        comments, raw_newlines, inner_quotes, bare_list, one_a_line, numbered, other_list,
        wrapped_twice, inside_a_string, list_in_a_string, other_keys, answers_in_lists,
        answers_in_objects, python_words, smart_spaces,
    )
}  # fmt: skip

AROUND: dict[str, Callable[[str], str]] = {
    "bare": lambda text: text,
    "fenced": lambda text: f"```json\n{text}\n```",
    "fenced, no language": lambda text: f"```\n{text}\n```",
    "fence not closed": lambda text: f"```json\n{text}\n",
    "prose before": lambda text: f"Sure! Here are the pairs [as JSON] you asked for:\n\n{text}",
    "prose after": lambda text: f"{text}\n\nLet me know if you would like more (or fewer) pairs!",
    "prose around a fence": lambda text: (
        f"Here you go:\n```json\n{text}\n```\nI hope that {{helps}}."
    ),
    "thinking": lambda text: (
        f'<think>\nThe passage says "48". I could write {{"pairs": []}} first.\n</think>\n{text}'
    ),
    "thinking without its start": lambda text: f"So I write {{...}} now.\n</think>\n\n{text}",
    "thinking, then a fence": lambda text: f"<think>Hm.</think>\n\n```json\n{text}\n```",
    "xml": lambda text: f"<answer>\n{text}\n</answer>",
}


def cut(text: str, random: random.Random, rows: Rows) -> tuple[str, int]:
    """The text cut off somewhere after its first row, and how many rows are whole."""
    last = [row["answer"] for row in rows]
    ends, at = [], 0
    for answer in last:
        at = text.index(json.dumps(answer, ensure_ascii=False), at) + len(json.dumps(answer))
        ends.append(text.index("}", at) + 1)
    place = random.randrange(ends[0], len(text))
    return text[:place], sum(end <= place for end in ends)
