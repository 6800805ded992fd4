"""The command `studio`: opens the pages over a project. Thin: the work is `studio/`.

In: a project folder and a port. Out: pages until Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated

import typer

from potstill.cli_options import ProjectOption, err


def studio(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8600,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    project: ProjectOption = None,
) -> None:
    """Open the studio: all of Potstill in a browser on this machine, until Ctrl-C."""
    from potstill.studio import open_studio

    console = err()

    def started(address: str) -> None:
        console.print(f"The studio is open at {address}", highlight=False, soft_wrap=True)
        console.print("Ctrl-C closes it; runs go on without it.", highlight=False)

    open_studio(project, port=port, browser=browser, started=started)
