"""Measures the quickstart: time, memory, size, what distillation gained, and survival of kills.

    python benchmarks/quickstart.py [--project FOLDER] [--kills 20]

Runs the built-in recipe in an empty project folder (the model cache is kept: the goal counts from
downloaded packages), then a short variant of it that is killed at random moments and compared with
an undisturbed run. Prints one JSON object a line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from figures import figure

from potstill.core.machine import describe

MINUTES_GOAL = 15.0
MEMORY_GOAL = 6e9
RATIO_GOAL = 0.75
BUSY_GOAL = 0.9
# The same stages on a part of the handbook, so that 20 kills fit into a coffee break.
SHORT = (
    "name=short",
    "ingest.sources=[sample:handbook-scan.pdf]",
    "generate.pairs_per_chunk=4",
    "distill.max_tokens=30000",
    "distill.checkpoint_minutes=0.1",
    "evaluate.max_examples=6",
    "export.max_examples=4",
)


def command(project: Path, *overrides: str) -> list[str]:
    """The quickstart's command line in a project folder."""
    options = [word for one in overrides for word in ("--set", one)]
    base = [sys.executable, "-m", "potstill", "run", "quickstart"]
    return [*base, "--project", str(project), *options]


def tree_memory(root: int) -> int:
    """Resident bytes of a process and all its children now (Linux)."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            pages = int((entry / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        parents[int(entry.name)] = int(fields[1])
        resident[int(entry.name)] = pages * os.sysconf("SC_PAGE_SIZE")
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        grown = bool(more)
        family |= more
    return sum(resident.get(pid, 0) for pid in family)


def run_measured(project: Path) -> tuple[float, int]:
    """Run the quickstart once: seconds, and the peak memory of all its processes together."""
    began = time.monotonic()
    process = subprocess.Popen(command(project), stdout=sys.stderr)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.2)
    if process.returncode != 0:
        sys.exit(f"the quickstart failed with exit code {process.returncode}")
    return time.monotonic() - began, peak


def measure_main(project: Path) -> None:
    """The figures of the main job."""
    seconds, peak = run_measured(project)
    report = json.loads((project / "runs" / "quickstart" / "report.json").read_text())
    models = report["models"]
    minutes = round(seconds / 60, 2)
    how = "make quickstart's command in an empty project, packages and teacher downloaded"
    figure("quickstart_minutes", minutes, "min", MINUTES_GOAL, minutes <= MINUTES_GOAL, how)
    how = "largest sum of resident memory of all its processes, sampled five times a second"
    figure("quickstart_peak_memory", peak, "bytes", MEMORY_GOAL, peak < MEMORY_GOAL, how)
    ratio = models["distilled"]["parameters"] / models["teacher"]["parameters"]
    how = "student's parameters over the teacher's"
    figure("student_size", round(ratio, 4), "ratio", RATIO_GOAL, ratio <= RATIO_GOAL, how)
    distilled = models["distilled"]["metrics"]["kl"]
    for other in ("undistilled", "finetuned"):
        theirs = models[other]["metrics"]["kl"]
        how = f"held-out KL to the teacher: distilled {distilled}, {other} {theirs}"
        gap = round(theirs["low"] - distilled["high"], 4)
        figure(f"kl_gap_to_{other}", gap, "nats/token between the intervals", "> 0", gap > 0, how)
    generate = report["stages"]["generate"]
    busy = generate["processor_seconds"] / generate["seconds"] / describe()["cores"]
    how = "processor seconds of the generating process over wall seconds and cores"
    figure("generation_busy", round(busy, 3), "of all cores", BUSY_GOAL, busy >= BUSY_GOAL, how)


def data_digests(project: Path) -> dict[str, str]:
    """Digests of the data stages of the short run."""
    stages = json.loads((project / "runs" / "short" / "run.json").read_text())["stages"]
    return {name: stages[name]["digest"] for name in ("ingest", "generate", "curate")}


def history(project: Path) -> Any:
    """The training curves of the short run."""
    stages = json.loads((project / "runs" / "short" / "run.json").read_text())["stages"]
    folder = project / "store" / "distill" / stages["distill"]["key"] / "data"
    return json.loads((folder / "history.json").read_text())


def measure_kills(folder: Path, kills: int, seed: int) -> None:
    """Kill the short run at random moments until it ends; compare with an undisturbed one."""
    calm, killed = folder / "calm", folder / "killed"
    for project in (calm, killed):
        project.mkdir()
    began = time.monotonic()
    subprocess.run(command(calm, *SHORT), check=True, stdout=sys.stderr)
    length = time.monotonic() - began
    lot = random.Random(seed)
    done, hit = 0, Counter[str]()
    while done < kills:
        process = subprocess.Popen(
            command(killed, *SHORT), stdout=sys.stderr, start_new_session=True
        )
        try:
            process.wait(timeout=lot.uniform(1.0, max(4.0, 3.2 * length / kills)))
            break  # it finished before it could be killed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            hit[last_stage(killed)] += 1
    last = subprocess.run(command(killed, *SHORT), check=False, stdout=sys.stderr)
    how = (
        f"SIGKILL to the whole process group at {done} random moments (seed {seed}) of a shortened "
        f"quickstart that takes {length:.0f} s undisturbed; where they fell: {dict(hit)}"
    )
    figure("kills_survived", done, "kills", kills, last.returncode == 0 and done == kills, how)
    if last.returncode != 0:
        return
    same = data_digests(calm) == data_digests(killed)
    figure("data_digests_equal", same, "", True, same, how)
    same = history(calm) == history(killed)
    figure("loss_curves_equal", same, "", True, same, how)
    sent = requests_sent(killed)
    holds = sent["repeated"] == 0
    figure("requests_sent_twice", sent["repeated"], "requests", 0, holds, f"{how}; {sent}")


def last_stage(project: Path) -> str:
    """The stage that the short run was in when it was killed."""
    path = project / "runs" / "short" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    stages = [json.loads(line)["stage"] for line in lines if line.endswith("}")]
    return str(next((stage for stage in reversed(stages) if stage), "before the first stage"))


def requests_sent(project: Path) -> dict[str, int]:
    """How many teacher requests were answered, and how many of them more than once."""
    keys: list[str] = []
    for path in sorted((project / "store" / "cache").rglob("*.jsonl")):
        keys += [json.loads(line)["key"] for line in path.read_text().splitlines() if line.strip()]
    return {"answered": len(keys), "repeated": len(keys) - len(set(keys))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", type=Path, help="an empty folder to work in and to keep")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    folder = options.project or Path(tempfile.mkdtemp(prefix="potstill-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measure_main(folder)
        if options.kills:
            measure_kills(folder, options.kills, options.seed)
    finally:
        if options.project is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
