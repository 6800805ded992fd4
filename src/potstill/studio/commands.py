"""What `potstill` says of a run, from a process of its own: no torch and no model in the studio.

In: a run, the words of a command that prints JSON, what it reads. Out: the value, or the command's
own error. One such command at a time is enough for one machine. Knows no page.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from potstill.errors import PotstillError, StoreError
from potstill.studio.session import Studio

PATIENCE = 600.0
"""Seconds."""


async def told(
    studio: Studio, command: str, run: str, words: Sequence[str], what: str, given: str = ""
) -> Any:
    """What `potstill COMMAND RUN ...` prints. what: how it is called if it breaks; given: its
    standard input.

    Errors: PotstillError with the command's own words; StoreError if it takes too long.
    """
    whole = [command, run, "--json", "--project", str(studio.project), *words]
    async with studio.asking:
        return await _said(whole, what, given)


async def _said(words: Sequence[str], what: str, given: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "potstill",
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "400"},
        start_new_session=True,
    )
    try:
        said, wrong = await asyncio.wait_for(process.communicate(given.encode()), PATIENCE)
    except BaseException as error:  # the browser left, or it takes too long
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise StoreError(f"{what} took too long.", "Ask for less.") from None
        raise
    if process.returncode == 0:
        return json.loads(said)
    lines = wrong.decode("utf-8", "replace").splitlines()
    place = next((n for n, line in enumerate(lines) if line.startswith("Error: ")), None)
    if place is None:
        raise PotstillError(f"{what} failed.", " ".join(lines[-1:])[:300])
    hint = lines[place + 1].strip() if place + 1 < len(lines) else ""
    raise PotstillError(lines[place].removeprefix("Error: "), hint)
