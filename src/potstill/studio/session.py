"""What one opened studio knows: its project, the secrets of its pages, and what it has read so far.

In: a project folder. Out: what the pages share. Everything but the secrets is a cache of files and
may be dropped at any moment. Knows no page.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.studio.blind_pairs import Pairs
from potstill.studio.diary import Diary
from potstill.studio.launch import Launcher
from potstill.studio.play import Player
from potstill.studio.rows import RowFiles


@dataclass
class Studio:
    """One studio over one project.

    token: opens it, in the address that is shown once. cookie: what a browser gets for it. form:
    what every change must bring along.
    """

    project: Path
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    form: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    opener: Callable[[Path, str], str] | None = field(default=None, repr=False)
    """Opens another project's studio beside this one; its address, for a page of it."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the studio ends, so that live pages let go of their connections."""
    launcher: Launcher = field(default_factory=Launcher)
    player: Player = field(default_factory=Player)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    """Held while a command that loads models is asked (`commands.py`)."""
    pairs: Pairs = field(default_factory=Pairs)
    rows: RowFiles = field(default_factory=RowFiles)
    passages: dict[Path, Any] = field(default_factory=dict)
    """Indexes for finding passages, by the file of chunks that they are over."""
    _diaries: dict[Path, Diary] = field(default_factory=dict)

    def diary(self, folder: Path) -> Diary:
        """The diary of a run's folder, read up to now."""
        path = folder / "events.jsonl"
        diary = self._diaries.setdefault(path, Diary(path))
        diary.refresh()
        return diary
