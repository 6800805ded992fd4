"""Reads subtitles (.srt): what is said, in order, without numbers and times."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.plugins import PageText, Reading, UnusableError

TIMES = re.compile(r"^\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}")
TAGS = re.compile(r"</?[ibu]>")


class Subtitles:
    """Option `cues`: so many cues become one paragraph (10)."""

    version = "1"
    suffixes = (".srt",)
    content = ("text",)

    def make(self, options: Mapping[str, Any]) -> Callable[[Path], Reading]:
        if unknown := set(options) - {"cues"}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        cues = options.get("cues", 10)
        if not isinstance(cues, int) or cues < 1:
            raise ValueError("cues must be a whole number of at least 1")
        return lambda path: read(path, cues)


def read(path: Path, cues: int) -> Reading:
    said = []
    for cue in re.split(r"\n\s*\n", path.read_text("utf-8-sig", errors="replace")):
        lines = cue.strip().splitlines()
        starts = [place for place, line in enumerate(lines) if TIMES.match(line)]
        if starts:
            said.append(TAGS.sub("", " ".join(lines[starts[0] + 1 :])))
    if not said:
        raise UnusableError("not_subtitles", "the file has no line of times")
    blocks = [" ".join(said[at : at + cues]) for at in range(0, len(said), cues)]
    return Reading(path.stem, [PageText(0, blocks)])


READER = Subtitles()
