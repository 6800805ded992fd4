"""A candidate beside the version that serves, a crash of it, a promotion: over tiny students."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import openai
from served import Served, served, sizes

from potstill.improve.trial import compare_traffic
from potstill.pipeline import Run
from potstill.serve.auth import KeyFile
from potstill.serve.engine import Engine, LocalEngine
from potstill.serve.feedback import read_feedback
from potstill.serve.gateway import ServeConfig
from potstill.serve.lanes import Canary, Lane
from potstill.serve.limits import KeyLimits
from potstill.serve.versions import Serving, Versions

SECONDS = 60.0
ASKED = [{"role": "user", "content": "How many litres?"}]


def ask(one: Served, words: str = "How many litres?", **more: Any) -> httpx2.Response:
    turns = [{"role": "user", "content": words}]
    body = {"model": "tiny", "messages": turns, "max_tokens": 3}
    return httpx2.post(
        f"{one.address}/v1/chat/completions",
        json=body | more,
        trust_env=False,
        timeout=SECONDS,
    )


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def canary(gguf: Path, assign: Any = "key", share: float = 0.5) -> tuple[Canary, LocalEngine]:
    engine = LocalEngine(gguf, sizes(2, 256))
    return Canary(Lane("tiny-2", engine), share, assign, seed=5), engine


def test_a_candidate_gets_its_share_and_the_comparison_is_written_down(
    tmp_path: Path, tiny_ggufs: dict[str, Path]
) -> None:
    candidate, engine = canary(tiny_ggufs["f16"])
    folder = tmp_path / "runs" / "tiny" / "serve"
    with served(folder, tiny_ggufs["q8_0"], canary=candidate) as one:
        seen: dict[str, set[str]] = {}
        for round_ in range(2):
            for number in range(12):
                said = ask(one, f"How many litres in unit {number}?", stream=round_ == 1)
                assert said.status_code == 200
                seen.setdefault(said.headers["x-variant"], set()).add(str(number))
                if round_ == 0:
                    thumb = "up" if said.headers["x-variant"] == "tiny-2" else "down"
                    fed = {"response": said.json()["id"], "thumb": thumb}
                    url = f"{one.address}/v1/feedback"
                    assert httpx2.post(url, json=fed, trust_env=False).status_code == 200
        assert set(seen) == {"tiny", "tiny-2"}
        assert not seen["tiny"] & seen["tiny-2"]  # a conversation stays where it is
        figures = httpx2.get(f"{one.address}/metrics", trust_env=False).text
        assert 'potstill_variant_requests_total{outcome="ok",variant="tiny-2"}' in figures
        assert "potstill_candidate_ready 1.0" in figures

        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGKILL)
        after = [ask(one, f"How many litres in unit {number}?") for number in range(12)]
        assert {said.status_code for said in after} == {200}
        wait(lambda: one.gateway.lanes.canary is None)
        assert {said.headers["x-variant"] for said in after[-3:]} == {"tiny"}
    audit = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    events = {line["event"]: line for line in audit}
    assert (events["started"]["version"], events["started"]["candidate"]) == ("tiny", "tiny-2")
    assert events["candidate_out"]["version"] == "tiny-2"
    assert {line["variant"] for line in audit if line["event"] == "feedback"} == set(seen)
    assert {row["variant"] for row in read_feedback(folder / "feedback.sqlite")} == set(seen)

    (tmp_path / "runs" / "tiny" / "run.json").write_text('{"seed": 1, "recipe": {}}')
    found = compare_traffic(Run(tmp_path / "runs" / "tiny"))
    line = json.loads((folder / "trial.jsonl").read_text().splitlines()[0])
    with (folder / "trial.jsonl").open("a") as file:  # of a service that noted it at its end
        file.write(json.dumps(line | {"current": "tiny-2", "candidate": "tiny-2"}) + "\n")
    assert compare_traffic(Run(tmp_path / "runs" / "tiny")) == found
    assert found["votes"]["candidate"]["up"] == len(seen["tiny-2"])
    assert found["votes"]["current"] == {
        "up": 0,
        "all": len(seen["tiny"]),
        "units": len(seen["tiny"]),
    }
    assert sum(found["requests"].values()) >= 24
    assert found["figures"]["completion_tokens"]["current"]["value"] <= 3


def test_all_requests_of_a_key_go_to_one_version(
    tmp_path: Path, tiny_ggufs: dict[str, Path]
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    made = [keys.add(f"k{number}", ("chat",), KeyLimits()) for number in range(6)]
    candidate, _ = canary(tiny_ggufs["q8_0"])
    with served(tmp_path / "serve", tiny_ggufs["q8_0"], canary=candidate, keys=keys) as one:
        for key in made:
            with one.client(key) as client:
                variants = {
                    client.chat.completions.with_raw_response.create(
                        model="tiny",
                        messages=[{"role": "user", "content": f"How many litres in {n}?"}],
                        max_tokens=2,
                    ).headers["x-variant"]
                    for n in range(4)
                }
            assert len(variants) == 1


def test_a_promotion_and_a_rollback_lose_no_request(
    tmp_path: Path, tiny_ggufs: dict[str, Path]
) -> None:
    folder = tmp_path / "serve"
    versions = Versions(folder, "tiny")

    def opened(serving: Serving) -> Engine:
        kind = "f16" if serving.version == "tiny-2" else "q8_0"
        return LocalEngine(tiny_ggufs[kind], sizes(2, 256))

    config = ServeConfig(port=0, parallel=2, context_tokens=256, threads=1)
    more: dict[str, Any] = {"versions": versions, "open_version": opened, "version": "tiny"}
    with served(folder, tiny_ggufs["q8_0"], config, **more) as one:
        stop, answers, failures = threading.Event(), list[str](), list[str]()

        def keep_asking() -> None:
            with one.client() as client:
                while not stop.is_set():
                    try:
                        said = client.chat.completions.with_raw_response.create(
                            model="tiny",
                            messages=ASKED,
                            max_tokens=8,  # type: ignore[arg-type]
                        )
                        answers.append(said.headers["x-variant"])
                    except openai.APIError as error:
                        failures.append(str(error))

        askers = [threading.Thread(target=keep_asking) for _ in range(3)]
        for thread in askers:
            thread.start()
        try:
            for change, name in (
                (lambda: versions.promote("tiny-2", "", "k", force=True), "tiny-2"),
                (versions.rollback, "tiny"),
            ):
                change()
                wait(lambda name=name: one.gateway.lanes.current.version == name)
                reached = len(answers)
                wait(lambda reached=reached: len(answers) > reached + 6)
        finally:
            stop.set()
            for thread in askers:
                thread.join()
        assert failures == []
        assert set(answers) == {"tiny", "tiny-2"}
        assert answers[-1] == "tiny"
        assert one.gateway.ready
    with closing((folder / "audit.jsonl").open()) as file:
        taken = [line for line in map(json.loads, file) if line["event"] == "version_taken"]
    assert [(line["before"], line["version"]) for line in taken] == [
        ("tiny", "tiny-2"),
        ("tiny-2", "tiny"),
    ]
