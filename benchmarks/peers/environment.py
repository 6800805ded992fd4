"""The environment that holds the peers: made once for each state of requirements.txt, then reused.

    python benchmarks/peers/environment.py

In: requirements.txt beside this file. Out: the path of a Python that has them, on standard output
or from `peers_python()`; pip's own output goes to standard error. It lies in the user's cache, and
its marker is written last, so that an interrupted installation is started anew.
Knows nothing of what the peers do.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from potstill.models.cache import cache_folder

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
MARKER = "complete"


def environment_folder() -> Path:
    """Where the environment is or will be: in the cache, named after requirements and Python."""
    python = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
    state = hashlib.sha256(REQUIREMENTS.read_bytes() + python.encode()).hexdigest()
    return cache_folder() / f"peers-{state[:16]}"


def peers_python() -> Path:
    """A Python that has the peers; installs them first if they are not there.

    Errors: SystemExit with pip's exit code if the installation fails.
    """
    folder = environment_folder()
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / MARKER).is_file():
            _install(folder, python)
    return python


def _install(folder: Path, python: Path) -> None:
    print(f"Installing what is compared into {folder}; once, some minutes.", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--quiet", "-r", str(REQUIREMENTS)],
    ):
        done = subprocess.run(command, check=False, stdout=sys.stderr)
        if done.returncode != 0:
            print(f"The installation failed: {' '.join(command)}", file=sys.stderr)
            raise SystemExit(done.returncode)
    (folder / MARKER).write_text("")


if __name__ == "__main__":
    print(peers_python())
