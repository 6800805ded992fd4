"""Files are read by processes of their own; one hostile file does not stop the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ingest.samples import pptx, squad, write_json
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from potstill.core.events import Emitter, read_events
from potstill.core.machine import resident_bytes
from potstill.core.stage import Context, Draft
from potstill.errors import MissingExtraError, PotstillError
from potstill.ingest import IngestConfig
from potstill.ingest.desk import Desks
from potstill.ingest.run import ingest

TEXT = "Valve RV-{} opens at 93 degrees and lets the hot water run to settling pond A."
HOSTILE = Path(__file__).with_name("hostile_worker.py")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer.json that counts words and marks."""
    made = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


class Run:
    """One run of the stage with real processes."""

    def __init__(self, folder: Path, project: Path, tokenizer: Path) -> None:
        self.folder, self.project, self.tokenizer = folder, project, tokenizer

    def __call__(self, processes: int = 2, **fields: Any) -> dict[str, str]:
        """name -> reason of what was rejected."""
        for part in ("data", "work"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        diary = self.folder / "events.jsonl"
        config = IngestConfig(sources=["."], min_chunk_tokens=4, **fields)
        context = Context(self.project, self.folder, 0, 2, Emitter(diary, "ingest"))
        work = self.folder / "work"
        with Desks(config, work, self.tokenizer, processes, 2) as desks:
            ingest(config, Draft(self.folder), context, desks)
        self.events = read_events(diary)[0]
        return {
            event["detail"].split(":")[0]: event["reason"]
            for event in self.events
            if event["kind"] == "rejected"
        }

    @property
    def data(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "data").iterdir()}


def many_files(project: Path) -> None:
    for number in range(6):
        (project / f"{number}.txt").write_text("\n\n".join([TEXT.format(number)] * 30))
    (project / "2b.txt").write_bytes((project / "2.txt").read_bytes())
    (project / "3.html").write_text(f"<h1>Valves</h1><p>{TEXT.format(3)}</p>")
    (project / "4.pptx").write_bytes(pptx(TEXT.format(4)))
    write_json(project / "5.json", squad())
    (project / "6.csv").write_text("question,answer\n" + "How?,So.\nbad\n" * 40)
    (project / "bad.pdf").write_bytes(b"")


def test_the_number_of_processes_does_not_show(
    tmp_path: Path, project: Path, tokenizer: Path
) -> None:
    many_files(project)
    runs = [Run(tmp_path / f"with{number}", project, tokenizer) for number in (1, 3)]
    reasons = [run(number) for run, number in zip(runs, (1, 3), strict=True)]
    assert reasons[0] == reasons[1]
    assert reasons[0]["2b.txt"] == "duplicate_file"
    assert runs[0].data == runs[1].data
    assert len(runs[0].data["documents.jsonl"].splitlines()) == 8
    assert len(runs[0].data["rows.jsonl"].splitlines()) == 43


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Desks, "command", (sys.executable, str(HOSTILE)))


def test_hostile_files_are_set_aside_and_the_others_go_on(
    tmp_path: Path, project: Path, tokenizer: Path, hostile: None
) -> None:
    kinds = ("abort", "bug", "busy", "fault", "full", "grow", "hang", "killed", "loud")
    for number, name in enumerate((*kinds, "a good one", "zz last")):
        (project / f"{name}.txt").write_text(TEXT.format(number))
    run = Run(tmp_path / "run", project, tokenizer)
    reasons = run(3, page_seconds=4, file_seconds=6, file_memory_bytes=400_000_000)
    assert reasons == {
        "abort.txt": "crashed",
        "bug.txt": "crashed",
        "busy.txt": "timed_out",
        "fault.txt": "crashed",
        "full.txt": "out_of_memory",
        "grow.txt": "out_of_memory",
        "hang.txt": "timed_out",
        "killed.txt": "out_of_memory",
    }
    assert len(run.data["documents.jsonl"].splitlines()) == 3
    details = {
        event["detail"].split(":")[0]: event["detail"]
        for event in run.events
        if event["kind"] == "rejected"
    }
    assert "SIGABRT" in details["abort.txt"]
    assert "ingest.file_seconds" in details["busy.txt"]
    assert "ingest.page_seconds" in details["hang.txt"]
    assert "ingest.file_memory_bytes" in details["grow.txt"]
    assert "ZeroDivisionError: nobody foresaw this" in details["bug.txt"]


def test_what_a_killed_run_had_read_is_not_read_again(
    tmp_path: Path, project: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "a.txt").write_text(TEXT.format(1))
    run = Run(tmp_path / "run", project, tokenizer)
    run()
    before = run.data
    # Every name is now one that a second reading would not survive.
    script = tmp_path / "refuses.py"
    script.write_text(
        "import sys\nfrom potstill.ingest import one, readers, worker\n"
        "def refuse(*args): raise ZeroDivisionError\n"
        "one.read_file = refuse\nif __name__ == '__main__': sys.exit(worker.main())\n"
    )
    monkeypatch.setattr(Desks, "command", (sys.executable, str(script)))
    assert run() == {}
    assert run.data == before


def test_a_process_that_cannot_begin_ends_the_run_and_not_the_files(
    tmp_path: Path, project: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "a.txt").write_text(TEXT.format(1))
    monkeypatch.setattr(Desks, "command", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(PotstillError, match="exit code 3"):
        Run(tmp_path / "run", project, tokenizer)()
    monkeypatch.undo()
    with pytest.raises(PotstillError, match="No file can be read"):
        Run(tmp_path / "run", project, tmp_path / "missing.json")()


def test_a_missing_package_is_no_files_fault(
    tmp_path: Path, project: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "a.txt").write_text(TEXT.format(1))
    script = tmp_path / "lacks.py"
    script.write_text(
        "import sys\nsys.modules['semchunk'] = None\nfrom potstill.ingest import worker\n"
        "if __name__ == '__main__': sys.exit(worker.main())\n"
    )
    monkeypatch.setattr(Desks, "command", (sys.executable, str(script)))
    with pytest.raises(MissingExtraError, match="semchunk"):
        Run(tmp_path / "run", project, tokenizer)()


def test_a_reading_process_ends_with_its_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(Desks.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert resident_bytes(process.pid) >= 0
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 143
    assert process.stdout is not None
    process.stdout.close()


def test_a_process_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys, potstill.ingest.worker as w; print([m for m in ('torch', 'transformers', "
    code += "'pyarrow', 'pptx') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
