"""All measurements of the data stages, one script after the other.

    make bench NAME=data

Each script prints its figures itself, one JSON object a line, and also works alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = ("ingest", "endpoint", "generate", "curate")


def main() -> int:
    """Run all parts, or those that are named; a part that fails does not stop the others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    failed = []
    for part in parser.parse_args().only:
        script = Path(__file__).with_name(f"data_{part}.py")
        print(f"+ {script.name}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, str(script)], check=False).returncode:
            failed.append(script.name)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
