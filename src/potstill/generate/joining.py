"""Questions about one chunk, one after the other, as the turns of conversations.

In: rows of the kind focus, those of a chunk together. Out: the same rows, each with the exchanges
before it as earlier turns; the passage stands in the first. No row is lost or added, and what the
student is to say stays the same. Knows no teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from potstill.records import Example, Turn, short_id


def joined(rows: Iterable[Example], turns: int) -> Iterator[Example]:
    """Each row after up to `turns` - 1 rows of its chunk; every `turns`-th begins anew.

    A chunk's first row, and every `turns`-th after it, stays as it is, so that single questions are
    learnt too. A later row asks its bare question: what came before says what about.
    """
    before: list[Example] = []
    for row in rows:
        if before and (len(before) == turns or row.provenance.chunk != before[0].provenance.chunk):
            before = []
        yield _after(before, row) if before else row
        before.append(row)


def _after(before: list[Example], row: Example) -> Example:
    asked = [before[0].turns[-2].content, *(one.question for one in before[1:]), row.question]
    said = [one.turns[-1].content for one in (*before, row)]
    turns = [
        Turn(role=role, content=content)
        for question, answer in zip(asked, said, strict=True)
        for role, content in (("user", question), ("assistant", answer))
    ]
    name = short_id(*(one.id for one in before), row.id)
    return row.model_copy(update={"id": name, "turns": tuple(turns)})
