"""The engine's process: warm before it is ready, started again after a crash, refused when damaged.
Documents, feedback and embeddings over the real routes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from served import SECONDS, Served, served

from potstill.errors import InputError, ModelError
from potstill.records import Chunk
from potstill.serve import engine as engine_module
from potstill.serve import vectors
from potstill.serve.corpus import Corpus
from potstill.serve.engine import LocalEngine, RemoteEngine
from potstill.serve.feedback import read_feedback
from potstill.serve.gateway import ServeConfig

PASSAGE = "The boiler of unit 7 holds 1250 litres."
CHUNK = Chunk(
    id="c1",
    document="d1",
    source="handbook.pdf",
    start=100,
    end=100 + len(PASSAGE),
    pages=(2,),
    tokens=9,
    text=PASSAGE,
)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def ask(client: openai.OpenAI, model: str = "tiny", **more: Any) -> Any:
    asked: Any = [{"role": "user", "content": "How many litres?"}]
    return client.chat.completions.create(model=model, messages=asked, max_tokens=5, **more)


def test_a_crash_costs_the_gateway_nothing(
    tmp_path: Path, tiny_ggufs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PAUSES", (0.0,))
    with served(tmp_path, tiny_ggufs["q8_0"]) as service, service.client() as client:
        engine = service.gateway.engine
        assert isinstance(engine, LocalEngine)
        before = ask(client)
        first = engine.process_id
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: engine.process_id not in (first, None) and engine.ready)
        assert ask(client).choices[0].message == before.choices[0].message
        fed = client.post(
            "/feedback", body={"response": before.id, "thumb": "up"}, cast_to=dict[str, Any]
        )
        assert fed["id"].startswith("fb-")


def test_while_there_is_no_engine_it_is_said(
    tmp_path: Path, tiny_ggufs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PAUSES", (3600.0,))
    with served(tmp_path, tiny_ggufs["q8_0"]) as service, service.client() as client:
        engine = service.gateway.engine
        assert isinstance(engine, LocalEngine)
        os.kill(engine.process_id or 0, signal.SIGKILL)
        until(lambda: not engine.ready)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]
        assert httpx2.get(f"{service.address}/ready", trust_env=False).status_code == 503
        assert httpx2.get(f"{service.address}/health", trust_env=False).status_code == 200


def test_a_damaged_gguf_is_one_clear_line(tmp_path: Path, tiny_ggufs: dict[str, Path]) -> None:
    whole = tiny_ggufs["q8_0"].read_bytes()
    torn, other = tmp_path / "torn.gguf", tmp_path / "other.gguf"
    torn.write_bytes(whole[: len(whole) // 2])
    other.write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot serve"), served(tmp_path / "serve", torn):
        pass
    with pytest.raises(ModelError, match="is not a GGUF"), served(tmp_path / "serve", other):
        pass
    with (
        pytest.raises(ModelError, match="Cannot read"),
        served(tmp_path / "serve", tmp_path / "missing.gguf"),
    ):
        pass


def test_a_client_that_goes_away_frees_the_slot_of_llama_cpp(
    tmp_path: Path, tiny_ggufs: dict[str, Path]
) -> None:
    roomy = ServeConfig(port=0, parallel=1, context_tokens=4096, threads=1)
    with served(tmp_path, tiny_ggufs["f16"], roomy) as service, service.client() as client:
        upstream: Any = service.gateway.engine.upstream

        def busy() -> bool:
            slots = httpx2.get(
                f"{upstream.base_url}/slots",
                headers={"Authorization": f"Bearer {upstream.key}"},
                trust_env=False,
                timeout=SECONDS,
            ).json()
            return any(slot["is_processing"] for slot in slots)

        stream = client.completions.create(
            model="tiny",
            prompt="The keeper",
            max_tokens=4000,
            temperature=1.5,
            seed=3,
            stream=True,
        )
        next(iter(stream))
        if busy():
            stream.close()
            until(lambda: not busy())
        assert ask(client).usage.completion_tokens > 0


def test_another_engine_behind_the_same_gateway(
    tmp_path: Path, tiny_ggufs: dict[str, Path]
) -> None:
    with served(tmp_path / "one", tiny_ggufs["q8_0"]) as inner, inner.client() as direct:
        remote = RemoteEngine(f"{inner.address}/v1", "", None, 2)
        with served(tmp_path / "two", remote) as outer, outer.client() as client:
            assert ask(client).choices[0].message == ask(direct).choices[0].message
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(model="tiny", prompt="litre " * 400, max_tokens=4)
            assert caught.value.code == "context_length_exceeded"
        with (
            pytest.raises(ModelError, match="has no model other"),
            served(tmp_path / "three", RemoteEngine(inner.address, "other", None, 2)),
        ):
            pass
    with (
        pytest.raises(ModelError, match="No engine answers"),
        served(tmp_path / "four", RemoteEngine(inner.address, "", None, 2)),
    ):
        pass


def read(file: Path, name: str, work: Path) -> list[Chunk]:
    text = file.read_text()
    if "bad" in name:
        raise InputError(f"{name} cannot be used (damaged): it is bad.")
    return [CHUNK.model_copy(update={"id": name, "source": name, "text": text})]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus([CHUNK], tmp_path / "serve" / "documents", read)


def upload(service: Served, name: str, content: bytes, **headers: str) -> httpx2.Response:
    return httpx2.post(
        f"{service.address}/v1/documents",
        params={"name": name},
        content=content,
        headers={"Content-Type": "application/octet-stream"} | headers,
        trust_env=False,
        timeout=SECONDS,
    )


def test_answers_from_documents_say_where_they_stand(
    tmp_path: Path, tiny_ggufs: dict[str, Path], corpus: Corpus
) -> None:
    with (
        served(tmp_path / "serve", tiny_ggufs["q8_0"], corpus=corpus) as service,
        service.client() as client,
    ):
        assert {one.id for one in client.models.list()} == {"tiny", "tiny:documents"}
        said = ask(client, "tiny:documents")
        (cited,) = said.citations
        assert (cited["source"], cited["pages"], cited["start"]) == ("handbook.pdf", [2], 100)
        assert service.gateway.memory.find(said.id, "").messages[-1]["content"] == (
            f"{PASSAGE}\n\nHow many litres?"
        )
        chunks = list(ask(client, "tiny:documents", stream=True))
        assert [one["chunk"] for one in chunks[-1].citations] == ["c1"]
        assert not any(hasattr(chunk, "citations") for chunk in chunks[:-1])
        unknown: Any = [{"role": "user", "content": "Xylophone?"}]
        nothing: Any = client.chat.completions.create(
            model="tiny:documents", messages=unknown, max_tokens=2
        )
        assert nothing.citations == []
        assert not hasattr(ask(client), "citations")
        assert upload(service, "ferry.md", b"The xylophone plays at six.").json()["new"]
        found: Any = client.chat.completions.create(
            model="tiny:documents", messages=unknown, max_tokens=2
        )
        assert [one["source"] for one in found.citations] == ["ferry.md"]
        for name, content, code in (
            ("bad.md", b"x", "unusable_document"),
            ("empty.md", b"", "unusable_document"),
            ("", b"x", "invalid_value"),
            ("..", b"x", "invalid_value"),
            ("a\nb", b"x", "invalid_value"),
        ):
            refused = upload(service, name, content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)
        wrong = upload(service, "a.md", b"x", **{"Content-Type": "text/plain"})
        assert wrong.status_code == 415
        assert upload(service, "../../etc/a.md", b"other words").json()["name"] == "a.md"
        assert {path.name for path in (tmp_path / "serve").iterdir()} == {
            "address.json", "audit.jsonl", "documents", "feedback.sqlite", "feedback.sqlite-shm",
            "feedback.sqlite-wal", "uploads",
        }  # fmt: skip


def test_feedback_is_kept_with_what_it_is_about(
    tmp_path: Path, tiny_ggufs: dict[str, Path], corpus: Corpus
) -> None:
    with (
        served(tmp_path / "serve", tiny_ggufs["q8_0"], corpus=corpus) as service,
        service.client() as client,
    ):
        said = ask(client, "tiny:documents")
        body = {"response": said.id, "thumb": "down", "correction": "1250 litres", "flag": "wrong"}
        made = client.post("/feedback", body=body, cast_to=dict[str, Any])
        (row,) = read_feedback(tmp_path / "serve" / "feedback.sqlite")
        assert row["id"] == made["id"]
        assert row["answer"] == said.choices[0].message.content
        assert row["citations"][0]["chunk"] == "c1"
        assert row["messages"][-1]["content"].startswith(PASSAGE)
        with pytest.raises(openai.NotFoundError):
            client.post("/feedback", body=body | {"response": "chatcmpl-0"}, cast_to=object)
        with pytest.raises(openai.BadRequestError):
            client.post("/feedback", body={"response": said.id}, cast_to=object)
        service.gateway.feedback._database.execute("PRAGMA max_page_count=1")
        long = body | {"correction": "x" * 20_000}
        with pytest.raises(openai.InternalServerError, match="disk"):
            client.post("/feedback", body=long, cast_to=object)
        assert ask(client).choices  # others are served


class Letters:
    def __init__(self, source: str) -> None: ...

    def vectors(self, texts: list[str], on_batch: Any) -> Any:
        return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]


def test_embeddings(
    tmp_path: Path, tiny_ggufs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "Encoder", Letters)
    monkeypatch.setattr(vectors, "encoder_digest", lambda source: source)
    with_meanings = Corpus([CHUNK], tmp_path / "documents", read, "letters")
    with (
        served(
            tmp_path / "serve",
            tiny_ggufs["q8_0"],
            corpus=with_meanings,
            embedding_model="letters",
        ) as service,
        service.client() as client,
    ):
        for encoding in ("float", "base64"):
            made = client.embeddings.create(
                model="letters",
                input=["a", "ab"],
                encoding_format=encoding,  # type: ignore[arg-type]
            )
            if encoding == "float":
                assert [one.embedding for one in made.data] == [[0, 1, 0, 0], [0, 0, 1, 0]]
        assert client.embeddings.create(model="letters", input="abc").data[0].embedding[3] == 1
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="a")
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="letters", input="a", dimensions=3)


def test_prompts_are_logged_only_if_asked_and_then_masked(
    tmp_path: Path, tiny_ggufs: dict[str, Path]
) -> None:
    for wanted in (False, True):
        config = ServeConfig(port=0, parallel=1, context_tokens=256, threads=1, log_prompts=wanted)
        with (
            served(tmp_path / str(wanted), tiny_ggufs["q8_0"], config) as service,
            service.client() as client,
        ):
            service.gateway.mask = lambda text: text.replace("litres", "[MASK]")
            ask(client)
        lines = [json.loads(line) for line in service.log.getvalue().splitlines()]
        (line,) = [one for one in lines if one["event"] == "request"]
        assert line["status"] == 200
        assert line["completion_tokens"] >= 1
        assert "litres" not in service.log.getvalue()
        assert ("messages" in line) == wanted
        if wanted:
            assert line["messages"][0]["content"] == "How many [MASK]?"
