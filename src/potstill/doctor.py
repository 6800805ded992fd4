"""What this machine can do with Potstill, and the exact line for what is missing.

In: nothing. Out: a list of findings. Reads package metadata, and asks the model hub whether it is
there; imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill import plugins
from potstill.core import extras, machine

PURPOSES = {
    "documents": "read documents and tables, cut documents into chunks",
    "ocr": "read scanned pages and pictures",
    "llamacpp": "ask GGUF teachers, chat with the student, write GGUF",
    "endpoint": "ask teachers behind an address",
    "serve": "serve the student with OpenAI's API",
    "studio": "open all of it in a browser",
    "train": "load, prune and distil models",
    "generate": "mend teachers' replies, find what they quote",
    "curate": "find duplicates and draw the data card",
    "report": "draw the report",
    "quantised": "hold teachers in 4 bits, train adapters on 4-bit weights",
    "tune": "search for the best settings",
    "ray": "let a cluster read files and ask teachers",
    "deepspeed": "hold a student in parts over GPUs by DeepSpeed",
    "onnx": "write models that mark answers as ONNX, and serve them",
    "otel": "send the service's traces to a collector",
    "remote": "share finished results with other machines",
}
QUICKSTART_MEMORY = 6 * 10**9
QUICKSTART_DISK = 6 * 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    state: Literal["ok", "missing", "note"]
    text: str
    remedy: str = ""


def examine(project: Path) -> list[Finding]:
    """Look at the machine, the packages, the folders and the way to the model hub."""
    return [*_machine(project), *_packages(), *_plugins(), *_folders(project), *_hub()]


def _machine(project: Path) -> list[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    flags = machine.processor_flags()
    memory = machine.memory_bytes()
    free = machine.free_disk_bytes(project)
    return [
        Finding("Python", "ok", version),
        Finding("processor", "ok", f"{machine.processor()}, {machine.usable_cores()} cores"),
        Finding("bf16 training", *_bf16(flags)),
        _enough("memory", memory, QUICKSTART_MEMORY, "the quickstart needs 6 GB"),
        _enough("free disk", free, QUICKSTART_DISK, "the quickstart needs 6 GB"),
        Finding("GPU", *_gpu()),
    ]


def _bf16(flags: list[str]) -> tuple[Literal["ok", "note"], str]:
    if "amx_bf16" in flags or "avx512_bf16" in flags:
        return "ok", f"fast on this processor ({', '.join(flags)})"
    return "note", "this processor has no bf16 instructions; training uses fp32 and is slower"


def _enough(name: str, have: int | None, need: int, why: str) -> Finding:
    if have is None:
        return Finding(name, "note", "unknown on this system")
    text = f"{have / 10**9:.0f} GB"
    if have >= need:
        return Finding(name, "ok", text)
    return Finding(name, "missing", f"{text}; {why}", "Free some, or use a smaller recipe.")


def _gpu() -> tuple[Literal["ok", "note"], str]:
    found = machine.gpus()
    if found:
        return "ok", "; ".join(found)
    return "note", "none found; everything runs on the processor"


def _hub() -> list[Finding]:
    """The hub is needed for its own models alone, so that nothing here counts as missing."""
    from potstill.models.hub import LOGIN, access

    found = access()
    reach = Finding("model hub", "ok", "can be reached")
    if not found.reached:
        text = f"not reached ({found.why}); models that are in its cache or in folders still work"
        reach = Finding("model hub", "note", text)
    login = Finding("hub login", "ok", f"there is one (from {found.token})")
    if not found.token:
        text = f"none; gated models need one: {LOGIN}"
        login = Finding("hub login", "note", text)
    return [reach, login]


def _packages() -> list[Finding]:
    findings = []
    for extra, modules in extras.EXTRAS.items():
        versions = {name: extras.installed_version(name) for name in modules.values()}
        missing = [name for name, version in versions.items() if version is None]
        purpose = PURPOSES[extra]
        if missing:
            findings.append(
                Finding(
                    f"[{extra}]",
                    "note" if extra in extras.APART else "missing",
                    f"to {purpose}: {', '.join(missing)} not installed",
                    extras.install_line(extra),
                )
            )
        else:
            listed = ", ".join(f"{name} {version}" for name, version in versions.items())
            findings.append(Finding(f"[{extra}]", "ok", f"can {purpose} ({listed})"))
    return findings


def _plugins() -> list[Finding]:
    """Those that are installed; whether they work, `potstill plugins --check` says."""
    found = plugins.installed()
    if not found:
        return [Finding("plug-ins", "ok", "none installed")]
    return [Finding("plug-ins", "ok", ", ".join(map(str, found)))]


def _folders(project: Path) -> list[Finding]:
    findings = []
    for name, folder in (("project folder", project), ("model cache", _cache_folder())):
        existing = folder
        while not existing.exists():
            existing = existing.parent
        if os.access(existing, os.W_OK):
            findings.append(Finding(name, "ok", str(folder)))
        else:
            findings.append(
                Finding(
                    name,
                    "missing",
                    f"{folder} cannot be written to",
                    "Work in a writable folder, or set POTSTILL_CACHE to one for the cache.",
                )
            )
    return findings


def _cache_folder() -> Path:
    from potstill.models.refs import cache_folder

    return cache_folder()
