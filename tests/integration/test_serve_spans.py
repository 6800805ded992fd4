"""A student that marks answers as a service: tiny BERTs in ONNX Runtime behind the gateway."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from served import SECONDS, EngineStandIn, Served, plain_turn, served
from span_models import export_tiny_spans, save_span_model
from span_stand_in import StandIn

from potstill import SpanReader
from potstill.errors import ModelError
from potstill.records import Chunk
from potstill.serve import engine as engine_module
from potstill.serve.auth import SCOPES, KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.feedback import read_feedback
from potstill.serve.gateway import ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.span_engine import SpanEngine
from potstill.serve.span_worker import Desk

TEXTS = (
    "the boiler of unit holds litres and is drained every days",
    "the keeper notes the time in the log",
    "the lamp in the north tower is red",
)
ALWAYS = 1000.0  # nats: a span in any case


def chunk(number: int) -> Chunk:
    text = TEXTS[number]
    return Chunk(
        id=f"c{number}",
        document="d",
        source="handbook.pdf",
        start=100 * number,
        end=100 * number + len(text),
        pages=(number + 1,),
        tokens=12,
        text=text,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run's export has it."""
    folder = tmp_path_factory.mktemp("export")
    save_span_model(folder / "safetensors", spread=0.5)
    return export_tiny_spans(folder / "safetensors", folder)


def engine(files: Path, name: str = "model.onnx", parallel: int = 2) -> SpanEngine:
    return SpanEngine(files / "safetensors", files / name, threads=2, parallel=parallel)


def stand_in(folder: Path, parallel: int = 2) -> StandIn:
    return StandIn(folder, folder / "model.onnx", 2, parallel)


def corpus(folder: Path) -> Corpus:
    def read(file: Path, name: str, work: Path) -> list[Chunk]:
        text = file.read_text()
        return [chunk(0).model_copy(update={"id": name, "source": name, "text": text, "start": 0})]

    return Corpus([chunk(number) for number in range(3)], folder / "documents", read)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder, engine(files), corpus=corpus(folder)) as one:
        yield one


def post(service: Served, body: Any, path: str = "/v1/qa", key: str = "") -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(
        f"{service.address}{path}", json=body, headers=headers, trust_env=False, timeout=SECONDS
    )


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def test_a_context_is_answered_as_the_reader_does(service: Served, files: Path) -> None:
    reader = SpanReader(files / "safetensors", onnx=files / "model.onnx", threads=1)
    for context in (*TEXTS, " ".join(TEXTS) * 5):
        question = "how many litres holds the boiler"
        wanted = reader.answer_from(question, [context], threshold=ALWAYS)
        body = {"question": question, "context": context, "no_answer_threshold": ALWAYS}
        answer = post(service, body)
        said = answer.json()
        assert answer.status_code == 200
        assert set(said) == {
            "id", "object", "created", "model", "answer", "score", "start", "end", "no_answer",
            "citations", "usage",
        }  # fmt: skip
        assert context[said["start"] : said["end"]] == said["answer"] == wanted.answer.answer
        assert said["score"] == pytest.approx(wanted.answer.score, rel=1e-5)
        assert said["no_answer"] == pytest.approx(wanted.answer.no_answer, rel=1e-5)
        assert said["citations"] == []
        assert (said["object"], said["model"], said["id"][:3]) == ("qa.answer", "tiny", "qa-")
        assert said["usage"] == {
            "prompt_tokens": wanted.tokens, "completion_tokens": 0, "total_tokens": wanted.tokens,
        }  # fmt: skip


def test_the_documents_are_read_where_no_context_is_given(service: Served, files: Path) -> None:
    reader = SpanReader(files / "safetensors", onnx=files / "model.onnx", threads=1)
    question = "who notes the time when the boiler holds litres"
    found = [0, 1]  # by their words; the third passage has none of them
    texts = [TEXTS[number] for number in found]
    body = {"question": question, "top_k": 3, "no_answer_threshold": ALWAYS}
    said = post(service, body).json()
    (cited,) = said["citations"]
    number = int(cited["chunk"][1])
    assert number in found
    best = [reader.answer_from(question, [text], threshold=ALWAYS).answer for text in texts]
    assert said["answer"] in {one.answer for one in best}
    assert (cited["source"], cited["pages"]) == ("handbook.pdf", [number + 1])
    assert TEXTS[number][said["start"] : said["end"]] == said["answer"]
    assert cited["answer_start"] == cited["start"] + said["start"] == 100 * number + said["start"]
    assert cited["answer_end"] == 100 * number + said["end"]
    assert said["no_answer"] == pytest.approx(min(one.no_answer for one in best), rel=1e-5)
    one = post(service, body | {"top_k": 1}).json()
    assert one["usage"]["prompt_tokens"] < said["usage"]["prompt_tokens"]


def test_no_answer_is_said_as_such(service: Served) -> None:
    body = {"question": "who notes the time", "no_answer_threshold": -1000.0}
    for more in ({}, {"context": TEXTS[0]}):
        said = post(service, body | more).json()
        assert (said["answer"], said["start"], said["end"]) == ("", None, None)
        assert said["score"] == said["no_answer"]
        assert said["citations"] == []
    nothing = post(service, {"question": "xylophone?"}).json()
    assert (nothing["answer"], nothing["no_answer"], nothing["citations"]) == ("", 1.0, [])
    assert nothing["usage"]["prompt_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_value"),
        ({"question": ""}, 400, "invalid_value"),
        ({"question": "  ", "context": "the log"}, 400, "invalid_value"),
        ({"question": "who", "context": " \n"}, 400, "invalid_value"),
        ({"question": "w" * 2001}, 400, "invalid_value"),
        ({"question": "who", "top_k": 0}, 400, "invalid_value"),
        ({"question": "who", "top_k": 33}, 400, "invalid_value"),
        ({"question": "who", "top_k": 3, "context": "the log"}, 400, "invalid_value"),
        ({"question": "who", "no_answer_threshold": "x"}, 400, "invalid_value"),
        ({"question": "who", "model": "other"}, 404, "model_not_found"),
        ({"question": "who", "answers": 3}, 400, "unknown_field"),
    ],
)
def test_what_is_wrong_is_said(
    service: Served, body: dict[str, Any], status: int, code: str
) -> None:
    answer = post(service, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_it_is_listed_and_does_not_write(service: Served) -> None:
    assert post(service, {"question": "who", "context": "the keeper"}).status_code == 200
    with service.client() as client:
        assert [one.id for one in client.models.list()] == ["tiny"]
        asked: Any = [{"role": "user", "content": "who?"}]
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="/v1/qa") as caught:
                client.chat.completions.create(model="tiny", messages=asked, stream=stream)
            assert caught.value.code == "wrong_task"
        with pytest.raises(openai.BadRequestError, match="/v1/qa"):
            client.completions.create(model="tiny", prompt="who?")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="tiny:documents", messages=asked)
    assert httpx2.get(f"{service.address}/ready", trust_env=False).status_code == 200
    figures = httpx2.get(f"{service.address}/metrics", trust_env=False).text
    assert 'potstill_requests_total{route="/v1/qa",status="200"}' in figures
    assert 'potstill_tokens_total{kind="prompt",model="tiny"}' in figures


def test_a_student_that_writes_does_not_mark(tmp_path: Path) -> None:
    writes: Any = EngineStandIn()
    with served(tmp_path, writes) as service:
        answer = post(service, {"question": "who", "context": "the keeper"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_task")
        assert "/v1/chat/completions" in answer.json()["error"]["message"]


def test_feedback_is_about_the_passage_that_decided(service: Served) -> None:
    question = "who notes the time"
    said = post(service, {"question": question, "no_answer_threshold": ALWAYS}).json()
    fed = post(service, {"response": said["id"], "thumb": "down"}, "/v1/feedback")
    assert fed.status_code == 200
    (row,) = read_feedback(service.gateway.folder / "feedback.sqlite")
    assert (row["answer"], row["citations"]) == (said["answer"], said["citations"])
    decisive = said["citations"][0]["text"]
    assert row["messages"] == [{"role": "user", "content": plain_turn(decisive, question)}]
    lines = [json.loads(line) for line in service.log.getvalue().splitlines()]
    (line,) = [one for one in lines if one.get("response") == said["id"]]
    assert (line["route"], line["prompt_tokens"] > 0) == ("/v1/qa", True)
    assert question not in service.log.getvalue()


def test_documents_come_and_go(tmp_path: Path) -> None:
    body = {"question": "xylophone tower", "top_k": 1, "no_answer_threshold": ALWAYS}
    with served(tmp_path, stand_in(tmp_path), corpus=corpus(tmp_path)) as service:
        added = httpx2.post(
            f"{service.address}/v1/documents?name=new.md",
            content=b"the xylophone of the south tower",
            headers={"Content-Type": "application/octet-stream"},
            trust_env=False,
        ).json()
        assert post(service, body).json()["citations"][0]["source"] == "new.md"
        place = f"{service.address}/v1/documents/{added['id']}"
        assert httpx2.get(place, trust_env=False).json() == added | {"new": False}
        assert httpx2.delete(place, trust_env=False).json() == {
            "id": added["id"], "object": "document.deleted", "deleted": True,
        }  # fmt: skip
        assert post(service, body).json()["citations"][0]["source"] == "handbook.pdf"
        for method in ("GET", "DELETE"):
            gone = httpx2.request(method, place, trust_env=False)
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "document_not_found")
        listed = httpx2.get(f"{service.address}/v1/documents", trust_env=False).json()
        assert listed["data"] == []
        audit = (tmp_path / "audit.jsonl").read_text()
        assert '"document_removed"' in audit
        assert added["id"] in audit
    assert len(corpus(tmp_path)) == 3
    assert list((tmp_path / "documents").iterdir()) == []


def test_keys_scopes_and_limits_hold(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    few = keys.add("few", ("chat",), KeyLimits(requests_per_minute=2))
    watcher = keys.add("watcher", ("metrics",), KeyLimits())
    reader = keys.add("reader", SCOPES, KeyLimits(tokens_per_minute=200))
    body = {"question": "who notes the time", "context": TEXTS[1]}
    with served(tmp_path / "serve", stand_in(tmp_path), keys=keys) as service:
        assert [post(service, body, key=key).status_code for key in ("x", watcher, few, few, few)] \
            == [401, 403, 200, 200, 429]  # fmt: skip
        long = body | {"context": " ".join(TEXTS) * 10}
        statuses = [post(service, long, key=reader).status_code for _ in range(4)]
        assert statuses[0] == 200
        assert statuses[-1] == 429
        none = httpx2.delete(
            f"{service.address}/v1/documents/x",
            headers={"Authorization": f"Bearer {few}"},
            trust_env=False,
        )
        assert none.status_code == 403
        without = post(service, {"question": "who"}, key=few)
        assert without.status_code in (400, 429)


def test_int8_answers_many_at_once_as_one_at_a_time(tmp_path: Path, files: Path) -> None:
    bodies = [
        {"question": f"{word} notes the time", "context": text, "no_answer_threshold": ALWAYS}
        for word in ("who", "what", "when", "where")
        for text in TEXTS
    ]

    def said(answer: httpx2.Response) -> tuple[Any, ...]:
        return tuple(answer.json()[name] for name in ("answer", "score", "start", "no_answer"))

    config = ServeConfig(port=0, parallel=2, queue=64, threads=2)
    with served(tmp_path, engine(files, "model-int8.onnx"), config) as service:
        alone = [said(post(service, body)) for body in bodies]
        with ThreadPoolExecutor(12) as pool:
            for _ in range(3):
                assert list(pool.map(lambda body: said(post(service, body)), bodies)) == alone
        assert service.gateway.gate.running == 0


def test_a_crash_costs_the_gateway_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PAUSES", (0.0,))
    body = {"question": "who notes the time", "context": TEXTS[1], "no_answer_threshold": ALWAYS}
    with served(tmp_path, stand_in(tmp_path)) as service:
        one = service.gateway.engine
        assert isinstance(one, SpanEngine)
        before, first = post(service, body).json()["answer"], one.process_id
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: one.process_id not in (first, None) and one.ready)
        assert post(service, body).json()["answer"] == before


def test_while_it_is_down_and_when_it_dies_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PAUSES", (3600.0,))
    with served(tmp_path, stand_in(tmp_path)) as service, ThreadPoolExecutor(1) as pool:
        one = service.gateway.engine
        assert isinstance(one, SpanEngine)
        process = one.process_id or 0
        os.kill(process, signal.SIGSTOP)
        waiting = pool.submit(post, service, {"question": "who", "context": TEXTS[1]})
        until(lambda: service.gateway.gate.running == 1 and bool(one._asked))
        os.kill(process, signal.SIGKILL)
        for answer in (waiting.result(SECONDS), post(service, {"question": "a", "context": "b"})):
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
        assert httpx2.get(f"{service.address}/ready", trust_env=False).status_code == 503


def test_a_question_that_nobody_waits_for_is_taken_back(tmp_path: Path) -> None:
    config = ServeConfig(port=0, parallel=1, threads=1, deadline_seconds=0.3)
    note = tmp_path / "cancelled"
    with served(tmp_path, stand_in(tmp_path, 1), config) as service:
        late = post(service, {"question": "hang", "context": TEXTS[1]})
        assert (late.status_code, late.json()["error"]["code"]) == (408, "deadline_exceeded")
        until(note.exists)
        assert post(service, {"question": "who", "context": TEXTS[1]}).json()["answer"] == "the"
    note.unlink()
    with served(tmp_path, stand_in(tmp_path, 1)) as service:
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(
                f"{service.address}/v1/qa",
                json={"question": "hang", "context": "a"},
                trust_env=False,
                timeout=0.5,
            )
        until(lambda: note.exists() and service.gateway.gate.running == 0)


def test_the_worker_reads_no_further_for_a_question_that_was_taken_back(files: Path) -> None:
    reader = SpanReader(files / "safetensors", onnx=files / "model.onnx", threads=1)
    logits, read = reader.backend.logits, []

    def counted(windows: Any) -> Any:
        read.append(len(windows))
        desk.take({"cancel": 1})
        return logits(windows)

    reader.backend.logits = counted  # type: ignore[method-assign]
    answers: list[dict[str, Any]] = []
    desk = Desk(reader, 1, answers.append)
    long = (TEXTS[1] + " ") * 400
    desk.take({"id": 1, "question": "who", "passages": [long, long], "threshold": None})
    desk.take({"id": 2, "question": "who", "passages": ["the keeper"], "threshold": 0.0})
    until(lambda: bool(answers))
    assert answers[0]["id"] == 2
    assert read == [16, 1]


def test_a_damaged_file_is_one_line(tmp_path: Path, files: Path) -> None:
    torn = tmp_path / "torn.onnx"
    torn.write_bytes((files / "model.onnx").read_bytes()[:5000])
    with (
        pytest.raises(ModelError, match=r"ONNX Runtime cannot serve .*torn\.onnx"),
        served(tmp_path / "serve", SpanEngine(files / "safetensors", torn, 1, 1)),
    ):
        pass


def test_what_is_not_finite_is_no_answer(files: Path) -> None:
    answers: list[dict[str, Any]] = []
    folder = files / "safetensors"
    reader = SpanReader(folder, onnx=files / "model.onnx", threads=1)
    logits = reader.backend.logits

    def broken(windows: Any) -> Any:
        return [(starts * math.nan, ends) for starts, ends in logits(windows)]

    reader.backend.logits = broken  # type: ignore[method-assign]
    desk = Desk(reader, 1, answers.append)
    desk.take({"id": 1, "question": "who", "passages": ["the keeper"], "threshold": None})
    until(lambda: bool(answers))
    assert "not finite" in answers[0]["failed"]
