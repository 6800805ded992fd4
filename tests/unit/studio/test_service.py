"""The service's page reads what `potstill serve` keeps, and decides as the commands do."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from studio_runs import browser, make_run

from potstill.core.claims import claimed
from potstill.improve import versions_of
from potstill.pipeline import Run
from potstill.serve.address import address_of, note_address
from potstill.serve.feedback import FeedbackStore, read_feedback
from potstill.serve.traffic import Row, TrafficStore
from potstill.studio.service_figures import at_most, charts_of
from potstill.studio.session import Studio

REPORT: dict[str, Any] = {"models": {}, "data": {}, "stages": {}}
EVIL = '<script>alert("x")</script>'


def request(number: int, seconds: float = 0.5, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "response": f"r{number}", "time": time.time() - 600 + 10 * number, "route": "chat",
        "model": "made", "variant": "made", "key": "", "characters": 20, "words": 4,
        "language": "en", "answer_tokens": 7, "confidence": None, "refused": False,
        "finish": "stop", "seconds": seconds, "first_token": 0.1,
    }  # fmt: skip
    return Row(**(fields | more))


@pytest.fixture
def opened(tmp_path: Path) -> tuple[TestClient, Studio, Run, list[str]]:
    run = Run(make_run(tmp_path, report=REPORT))
    with closing(TrafficStore(run.folder / "serve" / "traffic.sqlite")) as traffic:
        rows = [request(n, 0.01 * (n + 1)) for n in range(40)]
        traffic.add([*rows, request(41, 2.5, variant="made-2", refused=True)])
        verdict = {"alarm": True, "rows": 9, "untested": {}, "signals": [
            {"name": "length", "statistic": "psi", "value": 0.4, "p": 0.001, "adjusted": 0.004,
             "alarm": True, "against": "rows", "shares": []}]}  # fmt: skip
        traffic.add_window("made", [1, 2], 0.01, verdict, "s", {})
    ids = []
    with closing(FeedbackStore(run.folder / "serve" / "feedback.sqlite")) as feedback:
        for number, correction in enumerate(("Tove", None)):
            asked = {"role": "user", "content": f"Who grades it? {EVIL}"}
            ids.append(
                feedback.add(
                    response=f"r{number}", key="", model="made", thumb="down",
                    correction=correction, messages=[asked], answer=EVIL, citations=[],
                )
            )  # fmt: skip
    return (*browser(tmp_path), run, ids)


def post(client: TestClient, studio: Studio, **fields: str) -> Any:
    return client.post("/runs/made/service", data={"form": studio.form, **fields})


def ended(studio: Studio, place: Path) -> None:
    """Wait until what works on that place has ended."""
    end = time.monotonic() + 60
    while studio.launcher.running(place):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_traffic_drift_and_feedback_are_shown(
    opened: tuple[TestClient, Studio, Run, list[str]],
) -> None:
    client, _, _, _ = opened
    page = client.get("/runs/made/service").text
    assert "41 requests are kept" in page
    assert "200 ms" in page  # half of 40 requests of 10, 20, … 400 ms
    assert "380 ms" in page  # 95% of them
    assert "100.0%" in page  # the only one of made-2 declined
    assert "requests a minute" in page
    assert "Alarm 1" in page
    assert "Live traffic has moved away" in page
    assert "2 to review, 0 accepted" in page
    assert "Who grades it?" in page
    assert "<script>alert" not in page
    assert "Its service is not running" in page
    assert "PSI" in client.get("/runs/made/drift").text


def test_corrections_are_reviewed_and_alarms_marked(
    opened: tuple[TestClient, Studio, Run, list[str]],
) -> None:
    client, studio, run, ids = opened
    assert (
        post(client, studio, action="accept", id=ids[0], answer="Tove", note="ok").status_code
        == 200
    )
    path = run.folder / "serve" / "feedback.sqlite"
    first = next(one for one in read_feedback(path) if one["id"] == ids[0])
    assert (first["state"], first["right_answer"], first["note"]) == ("accepted", "Tove", "ok")
    refused = post(client, studio, action="accept", id=ids[1])
    assert "Nobody said what the right answer is" in refused.text
    post(client, studio, action="reject", id=ids[1])
    assert "0 to review, 1 accepted, 1 rejected" in client.get("/runs/made/service").text
    post(client, studio, action="dismiss", alarm="1")
    assert "marked as false" in client.get("/runs/made/service").text
    assert "no alarm 7" in post(client, studio, action="dismiss", alarm="7").text
    for fields in ({"action": "dismiss", "alarm": "x"}, {"action": "burn"}, {}):
        assert post(client, studio, **fields).status_code == 404


def test_an_improvement_is_a_process_of_its_own_and_says_why_it_cannot_begin(
    opened: tuple[TestClient, Studio, Run, list[str]],
) -> None:
    client, studio, run, _ = opened
    assert post(client, studio, action="improve").status_code == 200
    ended(studio, run.folder / "improve.log")
    page = client.get("/runs/made/service").text
    assert "has not finished the stage correct" in page
    assert "The last improvement, just now:" in page
    assert "Improve from accepted feedback</button>" in page


def test_a_service_that_cannot_start_says_why(
    opened: tuple[TestClient, Studio, Run, list[str]],
) -> None:
    client, studio, run, _ = opened
    for port in ("", "-1", "65536", "8000 --host 0.0.0.0"):
        assert "is no port" in post(client, studio, action="serve", port=port).text
    assert not (run.folder / "serve" / "service.log").exists()
    (run.folder / "export").mkdir(exist_ok=True)
    (run.folder / "export" / "student.gguf").write_bytes(b"no model")
    answer = post(client, studio, action="serve", port="8123")
    assert answer.status_code == 200
    assert str(answer.url).endswith("?port=8123")
    ended(studio, run.folder / "serve")
    assert 'name="port" value="8123"' in client.get("/runs/made/service?port=8123").text
    assert 'name="port" value="8000"' in client.get("/runs/made/service?port=x").text
    page = client.get("/runs/made/service").text
    assert 'role="alert"' in page
    assert "student.gguf" in page
    assert "Start the service</button>" in page
    assert "Log of the service" in page


def test_where_a_service_answers_is_known_while_its_process_lives(
    opened: tuple[TestClient, Studio, Run, list[str]],
) -> None:
    client, _, run, _ = opened
    folder = run.folder / "serve"
    note_address(folder, "http://127.0.0.1:8123")
    assert address_of(folder) == ""  # nobody holds the folder
    with claimed(folder, "The service"):
        assert address_of(folder) == "http://127.0.0.1:8123"
        page = client.get("/runs/made/service").text
        assert "http://127.0.0.1:8123/v1" in page
        assert "curl http://127.0.0.1:8123/v1/feedback" in page
        assert "Start the service" not in page
        (folder / "address.json").write_text('{"process": 1, "address": "http://127.0.0.1:9"}')
        assert address_of(folder) == ""  # of a service before
        starting = client.get("/runs/made/service")
        assert "Starting" in starting.text
        assert starting.headers["Refresh"] == "2"
        (folder / "address.json").write_text("torn")
        assert address_of(folder) == ""
    assert address_of(folder) == ""


def test_a_candidate_is_promoted_and_taken_back(
    opened: tuple[TestClient, Studio, Run, list[str]], tmp_path: Path
) -> None:
    client, studio, run, _ = opened
    name = "made-2"
    folder = make_run(tmp_path, name, files={"export": {"about": ["{}"]}}, report=REPORT)
    (folder / "export").mkdir()
    (folder / "export" / "student.gguf").write_bytes(b"x")
    gate = {"state": "unproven", "reasons": ["three rows are too few"]}
    versions_of(run).add_candidate(name, origin="made", export=f"{name}-export", gate=gate)
    page = client.get("/runs/made/service").text
    assert "the gate says unproven" in page
    assert "three rows are too few" in page
    assert "not proven better" in post(client, studio, action="promote", candidate=name).text
    assert versions_of(run).current().version == "made"
    post(client, studio, action="promote", candidate=name, unproven="on")
    assert versions_of(run).current().version == name
    assert "Go back to made" in client.get("/runs/made/service").text
    post(client, studio, action="rollback")
    assert versions_of(run).current().version == "made"
    assert "there is none before it" in post(client, studio, action="rollback").text


def test_a_run_that_is_not_finished_has_no_service(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    assert "Nothing to serve yet" in client.get("/runs/made/service").text


@given(st.lists(st.floats(0, 9), min_size=1).map(sorted), st.floats(0.01, 1))
def test_a_share_of_values_is_at_most_that(values: list[float], share: float) -> None:
    found = at_most(values, share)
    assert found in values
    assert sum(one <= found for one in values) >= share * len(values) - 1e-9
    assert sum(one < found for one in values) < share * len(values) + 1e-9


def test_charts_need_more_than_a_moment() -> None:
    assert charts_of([]) == []
    assert charts_of([request(1), request(2)]) == []
    assert len(charts_of([request(1), request(14)])) == 2


def test_two_requests_in_a_second_are_two_a_minute() -> None:
    traffic, _ = charts_of([request(0), request(0), request(13)])
    assert ">2<" in traffic
    assert ">4<" not in traffic


def test_a_service_whose_file_is_gone_is_not_offered(
    opened: tuple[TestClient, Studio, Run, list[str]],
) -> None:
    client, _, run, _ = opened
    page = client.get("/runs/made/service").text
    assert "It cannot be started: The run made has no exported student yet." in page
    assert "Start the service" not in page
    (run.folder / "export").mkdir(exist_ok=True)
    (run.folder / "export" / "made-q4_k_m.gguf").write_bytes(b"GGUF")
    page = client.get("/runs/made/service").text
    assert "cannot be started" not in page
    assert "Start the service" in page
