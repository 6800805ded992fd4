"""`potstill monitoring`: files for those who watch a service with Prometheus and Grafana.

In: a folder. Out: a dashboard and alert rules in it. Thin: the work is `serve/dashboard.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def monitoring(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path(),
) -> None:
    """Write a Grafana dashboard and Prometheus alert rules for the service."""
    from potstill.serve.dashboard import write_monitoring

    for file in write_monitoring(folder):
        sys.stdout.write(f"{file}\n")
