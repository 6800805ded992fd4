"""What the command `vllm` is to Potstill, where no vLLM is: its arguments, its socket, its log.

In: the arguments of `vllm serve`; in the environment, STAND_IN: what to do otherwise, and
STAND_IN_SECONDS: how long a reply takes. Out: the fake model's replies. Adds a line with its
arguments and its environment to the file that STAND_IN_NOTES names.
`command_in(folder)` makes the command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
VERSION = "9.9.9+standin"
# As vLLM 0.32 logs a start that fails: the reason first, then what follows from it.
FAILED = """\
(APIServer pid=7) WARNING 11-27 22:50:10 [utils.py:255] can cause errors like `OSError: [Errno 24]`.
(Worker pid=9) ERROR 11-27 22:50:34 [executor.py:953] Traceback (most recent call last):
(Worker pid=9) ERROR 11-27 22:50:34 [executor.py:953] ValueError: No memory for one request.
(EngineCore pid=8) ERROR 11-27 22:50:36 [core.py:15] Exception: WorkerProc initialization failed.
RuntimeError: Engine core initialization failed. See root cause above.
"""


def command_in(folder: Path) -> Path:
    """The command, with this Python, as pip would write it."""
    program = folder / "vllm"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = [{str(HERE)!r}]\n"
        "from vllm_stand_in import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return program


def say(text: str) -> None:
    """Into the log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Serve until the end."""
    if sys.argv[1:] == ["--version"]:
        say(f"vllm {VERSION}")
        return 0
    parser = argparse.ArgumentParser("vllm")
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model", type=Path)
    for name in (
        "--uds",
        "--served-model-name",
        "--load-format",
        "--generation-config",
        "--structured-outputs-config.backend",
    ):
        parser.add_argument(name, required=True)
    for name in ("--max-model-len", "--max-num-seqs", "--tensor-parallel-size"):
        parser.add_argument(name, required=True, type=int)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    told = parser.parse_args()
    if not (told.model / "config.json").is_file():
        say(f"OSError: {told.model} holds no model")
        return 1
    if notes := os.environ.get("STAND_IN_NOTES"):
        seen = {"arguments": sys.argv[1:], "environment": dict(os.environ), "process": os.getpid()}
        with Path(notes).open("a") as file:
            file.write(json.dumps(seen) + "\n")
    otherwise = os.environ.get("STAND_IN", "")
    if otherwise == "fails":
        say(FAILED)
        return 1
    from mock_endpoint import MockEndpoint, Seen

    ended = threading.Event()

    def behave(number: int, seen: Seen) -> str | tuple[int, dict[str, str], str] | None:
        if otherwise == "dies" and number == 3:
            say("(EngineCore pid=8) ERROR 11-27 [core.py:9] MemoryError: the card is full")
            os._exit(137)
        if otherwise == "fails later" and number >= 3:
            say("(EngineCore pid=8) ERROR 11-27 [core.py:9] RuntimeError: no grammar for this")
            return (500, {}, '{"error": {"message": "Internal server error"}}')
        if otherwise == "refuses one" and number == 1:
            return (400, {}, '{"error": {"message": "the prompt is longer than 64 tokens"}}')
        return None

    time.sleep(0.3)  # nobody answers at once
    slow = float(os.environ.get("STAND_IN_SECONDS", "0"))
    with MockEndpoint(behave=behave, delay=lambda n: slow, socket=told.uds):
        ended.wait()
    return 0
