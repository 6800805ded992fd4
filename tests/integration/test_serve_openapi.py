"""The OpenAPI document against the running service: schemathesis asks what it says can be asked,
and what it says cannot, and holds every answer to it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from served import SECONDS, Served, served
from span_stand_in import StandIn

from potstill.records import Chunk
from potstill.serve.auth import SCOPES, KeyFile
from potstill.serve.corpus import Corpus
from potstill.serve.gateway import ServeConfig
from potstill.serve.limits import KeyLimits
from potstill.serve.wire import CompletionRequest

TEXT = "The boiler of unit 7 holds 1250 litres."
NOT_CHECKED = "positive_data_acceptance"
"""Rules about two fields at once, and a model's room in tokens, are no JSON Schema: such a request
is valid by the document and is refused with 400, which the document names."""


def corpus(folder: Path) -> Corpus:
    where = {"id": "c", "document": "d", "source": "h.md", "start": 0, "end": len(TEXT)}
    own = Chunk.model_validate({**where, "tokens": 8, "text": TEXT})

    def read(file: Path, name: str, work: Path) -> list[Chunk]:
        text = file.read_bytes().decode("utf-8", "replace")
        return [own.model_copy(update={"id": name, "text": text})]

    return Corpus([own], folder / "documents", read)


def hold_to_the_document(folder: Path, service: Served, key: str, *options: str) -> str:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.address}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}"] if key else []
    command += ["--exclude-checks", NOT_CHECKED, "--seed", "7", "--no-shrink", "--no-color"]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def key_of_all(tmp_path: Path) -> tuple[KeyFile, str]:
    keys = KeyFile(tmp_path / "keys.json")
    return keys, keys.add("all", SCOPES, KeyLimits())


def generated(said: str) -> int:
    found = re.search(r"(\d+) generated", said)
    assert found is not None, said[-500:]
    return int(found[1])


def test_what_marks_does_as_its_document_says(tmp_path: Path, key_of_all: Any) -> None:
    keys, key = key_of_all
    engine = StandIn(tmp_path, tmp_path / "model.onnx", 2, 2)
    with served(tmp_path / "serve", engine, keys=keys, corpus=corpus(tmp_path)) as service:
        said = hold_to_the_document(
            tmp_path, service, key, "--phases", "fuzzing", "--max-examples", "6"
        )
        assert generated(said) > 60
        assert httpx2.get(f"{service.address}/ready", trust_env=False).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("keyed", [True, False])
def test_what_writes_does_as_its_document_says(
    tmp_path: Path, tiny_ggufs: dict[str, Path], key_of_all: Any, keyed: bool
) -> None:
    keys, key = key_of_all if keyed else (None, "")
    config = ServeConfig(port=0, parallel=2, context_tokens=256, threads=1, answer_tokens=8)
    with served(
        tmp_path / "serve", tiny_ggufs["q8_0"], config, keys=keys, corpus=corpus(tmp_path)
    ) as service:
        said = hold_to_the_document(tmp_path, service, key, "--max-examples", "60")
        assert generated(said) > 1000
        assert service.gateway.gate.running == service.gateway.gate.waiting == 0
        assert "nobody foresaw" not in service.log.getvalue()
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "How many litres?"}]}
        answer = httpx2.post(
            f"{service.address}/v1/chat/completions",
            json=asked,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
            timeout=SECONDS,
        )
        assert answer.status_code == 200


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    engine = StandIn(tmp_path, tmp_path / "model.onnx", 2, 2)
    with served(tmp_path / "serve", engine, corpus=corpus(tmp_path)) as one:
        yield one


def test_the_document_names_every_route_its_errors_and_its_models(service: Served) -> None:
    document = httpx2.get(f"{service.address}/openapi.json", trust_env=False).json()
    assert "securitySchemes" not in document["components"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert "422" not in operation["responses"]
            content = operation["responses"]["200"].get("content")
            assert content not in (None, {"application/json": {"schema": {}}}), (method, path)
            errors = [one for one in operation["responses"] if one != "200"]
            assert errors, path
            for status in errors:
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema["$ref"].rsplit("/", 1)[1] in ("Error", "Ready")
    asked = document["components"]["schemas"]["QaRequest"]["properties"]["model"]
    assert asked == {"type": "string", "enum": ["tiny"]}


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("POST", "/health", 405, "GET"),
        ("POST", "/v1/models", 405, "GET"),
        ("PUT", "/v1/documents", 405, "GET, POST"),
        ("OPTIONS", "/v1/documents/x", 405, "DELETE, GET"),
        ("DELETE", "/v1/qa", 405, "POST"),
        ("POST", "/v1/nowhere", 404, None),
        ("GET", "/v1/models/", 404, None),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    service: Served, method: str, path: str, status: int, allowed: str | None
) -> None:
    answer = httpx2.request(method, f"{service.address}{path}", trust_env=False)
    assert (answer.status_code, answer.headers.get("allow")) == (status, allowed)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("field", [{"echo": 0}, {"echo": True}, {"best_of": True}, {"n": True}])
def test_what_python_takes_for_the_same_is_not_the_same(field: dict[str, Any]) -> None:
    CompletionRequest.model_validate({"model": "a", "prompt": "b", "echo": False, "n": 1})
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({"model": "a", "prompt": "b", **field})
