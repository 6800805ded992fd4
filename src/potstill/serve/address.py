"""Where a running service answers, for those who look at its folder.

In: a service's folder. Out: its address, as long as the process lives that wrote it. Imports no
service, so that a page can look without one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from potstill.core.claims import holder
from potstill.core.files import read_json, write_json
from potstill.errors import StoreError

FILE = "address.json"


def note_address(folder: Path, address: str) -> None:
    """Tell where this process answers. A disk that refuses stops no service."""
    with suppress(StoreError):
        write_json(folder / FILE, {"process": os.getpid(), "address": address})


def address_of(folder: Path) -> str:
    """The address of the service that holds the folder; "": there is none, or not yet."""
    try:
        found = read_json(folder / FILE)
        return str(found["address"]) if found["process"] == holder(folder) else ""
    except (OSError, StoreError, KeyError, TypeError):
        return ""
