"""Measures evaluation and export against the official packages and against the usual way.

    python benchmarks/evaluate.py [--data FILE]

Runs `evaluate_metrics.py`, `evaluate_speed.py`, `evaluate_exports.py` and `evaluate_half.py`, each
a process of its own. Prints their JSON objects, one a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = (
    "evaluate_metrics.py",
    "evaluate_speed.py",
    "evaluate_exports.py",
    "evaluate_half.py",
)
DATA = HERE.resolve().parents[1] / "shared" / "data" / "xquad-en-dev.json"


def main() -> int:
    """Run every part; the first exit code that is not 0 is this one's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a SQuAD v1.1 file")
    options = parser.parse_args()
    codes = []
    for part in PARTS:
        data = [] if part == PARTS[0] else ["--data", str(options.data)]
        command = [sys.executable, str(HERE / part), *data]
        print("+", " ".join(command), file=sys.stderr, flush=True)
        codes.append(subprocess.run(command, check=False).returncode)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
