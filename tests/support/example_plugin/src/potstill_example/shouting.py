"""Rejects rows whose question is written in capitals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from potstill.plugins import Example, Surroundings, Verdict


class Shouting:
    """Option `share`: the share of capitals among the letters that is shouting (0.7)."""

    version = "1"

    def make(self, options: Mapping[str, Any]) -> Callable[[Example, Surroundings], Verdict]:
        share = float({"share": 0.7, **options}["share"])
        if set(options) - {"share"} or not 0 < share <= 1:
            raise ValueError("share is a number above 0 and up to 1, and there is nothing else")

        def judge(example: Example, around: Surroundings) -> Verdict:
            letters = [one for one in example.question if one.isalpha()]
            capitals = sum(one.isupper() for one in letters)
            if letters and capitals >= share * len(letters):
                return Verdict(keep=False, reason="capitals", detail=f"{capitals} capitals")
            return Verdict(keep=True)

        return judge


FILTER = Shouting()
