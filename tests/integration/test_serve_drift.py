"""Drift of a real service over a tiny student: what is kept, tested, shown, dismissed."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from served import Served, served

from potstill import drifting
from potstill.cli import main
from potstill.core.files import write_json, write_records
from potstill.core.store import Store
from potstill.errors import StoreError, UsageError
from potstill.pipeline import Run
from potstill.recipe import Recipe
from potstill.records import Example, Provenance, Turn
from potstill.serve.auth import KeyFile
from potstill.serve.gateway import ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.monitor import Audit, Figures, Log
from potstill.serve.watch import CHAT, Seen
from potstill.service import serve_run

SECONDS = 90.0
KEY = "0" * 64
CONFIG = ServeConfig(
    port=0, parallel=2, context_tokens=256, threads=1, drift_window=20, confidence=True
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has its training rows and no more."""
    project = tmp_path_factory.mktemp("project")
    store = Store(project / "store")
    draft = store.draft("curate", KEY)
    write_records(draft.data / "train.jsonl", [row(place) for place in range(80)])
    store.commit(draft, {"stage": "curate", "key": KEY})
    recipe = Recipe.from_dict({"name": "small", "teacher": "none", "ingest": {"sources": ["a.md"]}})
    made = {
        "project": str(project),
        "store": str(store.root),
        "stages": {"curate": {"key": KEY}},
        "recipe": recipe.model_dump(mode="json"),
    }
    write_json(project / "runs" / "small" / "run.json", made)
    return Run(project / "runs" / "small")


def row(place: int) -> Example:
    """Every tenth declines in its own words; every eighth is a variant of another row."""
    question = f"How many litres does the boiler of unit {place} hold?"
    own = "The log is silent." if place % 10 == 0 else f"{place} litres"
    return Example(
        id=str(place),
        kind="refusal" if place % 10 == 0 else "qa",
        turns=(Turn(role="user", content=question), Turn(role="assistant", content=own)),
        question=question,
        answers=(own,),
        provenance=Provenance(
            document="d", chunk="c", parent=str(place - 1) if place % 8 == 7 else None
        ),
    )


@pytest.fixture(scope="module")
def service(run: Run, tiny_ggufs: dict[str, Path]) -> Iterator[Served]:
    judge = drifting.declines_of(run)
    with served(run.folder / "serve", tiny_ggufs["q8_0"], CONFIG, declines=judge) as one:
        one.gateway.traffic = drifting.open_watch(run, one.gateway)
        yield one


def potstill(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of the command."""
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(output), redirect_stderr(errors):
        patched.setattr(sys, "argv", ["potstill", *arguments])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, output.getvalue(), errors.getvalue()


def ask(client: openai.OpenAI, question: str, **more: Any) -> Any:
    turn: Any = {"role": "user", "content": question}
    return client.chat.completions.create(
        model="tiny", messages=[turn], **({"max_tokens": 2} | more)
    )


def test_drift_from_the_first_request_to_a_dismissed_alarm(
    run: Run, service: Served, tmp_path: Path
) -> None:
    project = ["--project", run.record["project"]]
    with service.client() as client:
        known = drifting.taught(run)
        assert len(known) == 70  # without the variants
        assert "too few" not in potstill("drift", "small", *project)[1]
        said = ask(client, known[0].question, max_tokens=5)
        assert said.choices[0].logprobs is None  # asked of the engine, not by this client
        chunks = list(ask(client, known[1].question, stream=True))
        assert not any(one.choices and one.choices[0].logprobs for one in chunks)
        shown = ask(client, known[2].question, logprobs=True).choices[0].logprobs.content
        assert shown
        assert shown[0].top_logprobs == []
        until(lambda: drifting.read_drift(run)["requests"] == 3)
        assert "3 requests so far: too few for a window" in potstill("drift", "small", *project)[1]
        with ThreadPoolExecutor(2) as pool:
            words = "Y a-t-il beaucoup d'eau dans la chaudière aujourd'hui, et pourquoi donc ? "
            list(pool.map(lambda place: ask(client, f"{words * 2}{place}"), range(37)))
    until(lambda: len(drifting.read_drift(run)["windows"]) == 2)
    found = json.loads(potstill("drift", "small", "--json", *project)[1])
    assert found["off"] == ""
    newest = found["windows"][-1]
    assert newest["alarm"]
    signals = {one["name"]: one for one in newest["verdict"]["signals"]}
    assert signals["language"]["alarm"]
    assert signals["length"]["alarm"]
    assert signals["confidence"]["against"] == "first window"
    assert signals["refusal"]["shares"][1][1] == pytest.approx(8 / 70, abs=1e-3)
    assert newest["verdict"]["untested"]["meaning"] == "the service has no encoder"
    for file in (run.folder / "serve").glob("traffic.sqlite*"):
        assert "chaudière".encode() not in file.read_bytes()
    text = potstill("drift", "small", *project)[1]
    assert "language of the question" in text
    assert "moved" in text
    assert potstill("drift", "small", "--dismiss", str(newest["id"]), *project)[0] == 0
    assert potstill("drift", "small", "--dismiss", "99", *project)[0] == 2
    about = drifting.read_drift(run)["variants"]["tiny"]
    assert (about["dismissed"], about["state"]) == (1, "dismissed")

    page = httpx2.get(f"{service.address}/drift", trust_env=False)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "style-src 'unsafe-inline'" in page.headers["content-security-policy"]
    assert "marked as false" in page.text
    assert "<svg" in page.text
    file = tmp_path / "drift.html"
    assert potstill("drift", "small", "--page", str(file), *project)[0] == 0
    assert "language of the question" in file.read_text("utf-8")
    metrics = httpx2.get(f"{service.address}/metrics", trust_env=False).text
    assert 'potstill_drift_alarm{variant="tiny"} 1.0' in metrics
    assert "potstill_traffic_kept_total 40.0" in metrics


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_page_needs_the_scope_of_the_figures(
    run: Run, tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    chat = keys.add("chat", ("chat",), KeyLimits())
    metrics = keys.add("metrics", ("metrics",), KeyLimits())
    with served(tmp_path / "serve", tiny_ggufs["q8_0"], CONFIG, keys=keys) as one:

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            found = httpx2.get(f"{one.address}/drift", headers=headers, trust_env=False)
            return int(found.status_code)

        assert (status("none"), status(chat), status(metrics)) == (401, 403, 404)
        one.gateway.traffic = drifting.open_watch(Run(run.folder), one.gateway)
        assert status(metrics) == 200


def test_mistakes_are_one_line(run: Run, tmp_path: Path, tiny_ggufs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"--alert has to begin with http"):
        serve_run(run, ServeConfig(port=0), alert="ftp://somewhere/x")
    early = Run(tmp_path / "early")
    record = run.record
    record["stages"] = {}
    early.folder.mkdir()
    (early.folder / "run.json").write_text(json.dumps(record))
    assert "has not finished the stage curate" in drifting.read_drift(early)["off"]
    with served(early.folder / "serve", tiny_ggufs["q8_0"], CONFIG) as one:
        one.gateway.traffic = drifting.open_watch(early, one.gateway)  # it is served all the same
        with one.client() as client:
            ask(client, "How many litres?")
        assert "drift_off" in one.log.getvalue()
        page = httpx2.get(f"{one.address}/drift", trust_env=False).text
        assert "Nothing is compared. The run early has not finished the stage curate" in page
    code, text, _ = potstill("drift", str(early.folder))
    assert code == 0
    assert "Nothing is compared: The run early has not finished the stage curate" in text
    drifting.store_path(early).write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"traffic store .* Restore it"):
        drifting.read_drift(early)
    code, _, errors = potstill("drift", str(early.folder))
    assert code == 5
    assert "Traceback" not in errors


def test_with_an_encoder_meanings_and_topics_are_compared(run: Run, tmp_path: Path) -> None:
    def vectors(texts: Any) -> Any:
        rows = [np.random.default_rng(list(one.encode())).normal(size=4) for one in texts]
        shifted = [row + 9 * ("boiler" in one) for row, one in zip(rows, texts, strict=True)]
        return np.array([row / np.linalg.norm(row) for row in shifted], np.float32)

    log = Log(io.StringIO())
    gateway: Any = SimpleNamespace(
        config=CONFIG, figures=Figures(), log=log, audit=Audit(tmp_path / "a.jsonl", log),
        corpus=SimpleNamespace(index=SimpleNamespace(vectors=vectors)), embedding_model="toy",
        engine=SimpleNamespace(model="student"), declines=drifting.declines_of(run),
    )  # fmt: skip
    own = Run(tmp_path / "other")
    own.folder.mkdir()
    (own.folder / "run.json").write_text(json.dumps(run.record))
    watch = drifting.open_watch(own, gateway)
    for place in range(40):
        words = "the boiler" if place < 20 else "the harbour"
        asked = f"How many litres does {words} of unit {place} hold?"
        watch.note(
            Seen(f"r{place}", 0.0, CHAT, "m", "m", "", asked, True, False, 2, -0.1, "stop",
                 0.1, 0.1)
        )  # fmt: skip
    watch.close()
    calm, moved = (one["verdict"] for one in drifting.read_drift(own)["windows"])
    assert {one["name"]: one["alarm"] for one in calm["signals"]}["meaning"] is False
    signals = {one["name"]: one for one in moved["signals"]}
    assert signals["meaning"]["alarm"]
    assert signals["topic"]["shares"][0][0].startswith("How many litres does the boiler")
    assert moved["rows"] == 70
