"""The studio: all of Potstill in a browser on this machine.

    from potstill.studio import open_studio

    open_studio(Path("my-handbook"))        # until Ctrl-C

In: a project folder. Out: pages over its runs. It holds no state of its own: it calls the functions
that the command line calls, and reads the run folders, their diaries and the store. A run that it
starts is a process of its own, which neither a closed page nor a stopped studio ends.
"""

from potstill.studio.server import open_studio

__all__ = ["open_studio"]
