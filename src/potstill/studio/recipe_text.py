"""Changes one field of a recipe's text and leaves the rest, comments and order included, as it is.

In: YAML text, a field's place, a value. Out: YAML text. What comes out is read again and compared
with what it should say; where an edit of the text would not say it, the whole is written anew.
Knows no field.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import yaml

from potstill.core import fields
from potstill.errors import RecipeError

Values = dict[str, Any]


def put(text: str, place: Sequence[str], value: Any) -> str:
    """The text with that field set. Errors: RecipeError for text that cannot be read, or a place
    below a value."""
    data, _ = fields.parse(text, "recipe")
    wanted = copy.deepcopy(data)
    _sections(wanted, place[:-1])
    blocked = fields.put(wanted, place, value)
    if blocked is not None:
        raise RecipeError(f"{blocked} is a value, not a section.")
    return _checked(_put(text, place, value, wanted), wanted)


def drop(text: str, place: Sequence[str]) -> str:
    """The text without that field, and without the sections that held nothing else; so it has its
    default. Errors: RecipeError for text that cannot be read."""
    data, _ = fields.parse(text, "recipe")
    wanted = copy.deepcopy(data)
    gone = list(place)
    if not _remove(wanted, gone):
        return text
    while len(gone) > 1 and _at(wanted, gone[:-1]) == {}:
        gone.pop()
        _remove(wanted, gone)
    return _checked(_drop(text, gone), wanted)


def _checked(edited: str | None, wanted: Values) -> str:
    try:
        if edited is not None and fields.parse(edited, "recipe")[0] == wanted:
            return edited
    except RecipeError:
        pass
    return str(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))


def _put(text: str, place: Sequence[str], value: Any, wanted: Values) -> str | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    node, depth = root, 0
    while True:
        assert isinstance(node, yaml.MappingNode)
        found = _entry(node, place[depth])
        if found is None:
            break
        key, inner = found
        depth += 1
        if depth == len(place) or not isinstance(inner, yaml.MappingNode) or inner.flow_style:
            # The field itself; or a section that is empty or stands on one line.
            end = _end(inner)
            line = "\n" * text[key.end_mark.index : end].endswith("\n")
            shown = _shown(_at(wanted, place[:depth]))
            return f"{text[: key.end_mark.index]}: {shown}{line}{text[end:]}"
        node = inner
    end = text.find("\n", _end(node))
    end = len(text) if end < 0 else end
    indent = " " * node.start_mark.column
    lines = [f"{indent}{'  ' * step}{name}:" for step, name in enumerate(place[depth:])]
    lines[-1] += f" {_shown(value)}"
    return text[:end] + "\n" + "\n".join(lines) + (text[end:] or "\n")


def _drop(text: str, place: Sequence[str]) -> str | None:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for name in place[:-1]:
        assert isinstance(node, yaml.MappingNode)
        found = _entry(node, name)
        if found is None:
            return None
        node = found[1]
    assert isinstance(node, yaml.MappingNode)
    found = _entry(node, place[-1])
    if found is None or node.flow_style:
        return None
    begin = text.rfind("\n", 0, found[0].start_mark.index) + 1
    last = max(found[0].end_mark.index, _end(found[1]) - 1)  # a block of text ends after its line
    end = text.find("\n", last)
    return text[:begin] + (text[end + 1 :] if end >= 0 else "")


def _entry(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next(((key, value) for key, value in node.value if key.value == name), None)


def _end(node: yaml.Node) -> int:
    """Where the node's own text ends. That of a block is said to end where the next thing begins,
    so its last entry tells."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _shown(value: Any) -> str:
    """The value on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return str(dumped).removesuffix("\n").removesuffix("\n...")


def _sections(data: Values, place: Sequence[str]) -> None:
    """Make sections of the empty entries on the way: `distill:` and nothing after it."""
    for name in place:
        if data.get(name, {}) is None:
            data[name] = {}
        inner: Any = data.get(name, {})
        if not isinstance(inner, dict):
            return
        data = inner


def _at(data: Any, place: Sequence[str]) -> Any:
    for name in place:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _remove(data: Values, place: Sequence[str]) -> bool:
    section = _at(data, place[:-1])
    if not isinstance(section, dict) or place[-1] not in section:
        return False
    del section[place[-1]]
    return True
