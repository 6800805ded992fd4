"""What may stand after `--on`, and what is said of the rest before anything has run."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from potstill import pipeline
from potstill.errors import MissingExtraError, UnavailableError, UsageError
from potstill.recipe import Recipe
from potstill.scale import place as module
from potstill.scale.place import PORT, place_from, place_of
from potstill.scale.stages import on_ray


def test_this_machine() -> None:
    place = place_of(" ray ", workers=2, threads=3)
    assert (place.address, place.workers, place.threads) == ("ray", 2, 3)
    assert place.local
    assert place.sees_files
    assert place_of("ray").threads == 1


def test_an_address_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        place = place_of(f"ray://127.0.0.1:{port}")
        assert place.address == f"ray://127.0.0.1:{port}"
        assert not place.local
        assert not place.sees_files
        assert place_of(f"ray://127.0.0.1:{port}/", shared=True).sees_files


def test_an_address_without_a_port_is_rays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "_check_listens", lambda *where: asked.append(where))
    assert place_of("ray://head").address == f"ray://head:{PORT}"
    assert place_of("ray://[::1]").address == f"ray://[::1]:{PORT}"
    assert [host for host, *_ in asked] == ["head", "::1"]


@pytest.mark.parametrize(
    "on", ["", "spark", "ray:/head", "ray://", "ray://head:port", "http://head:1", "ray://h/x"]
)
def test_what_is_no_place(on: str) -> None:
    with pytest.raises(UsageError, match="no place"):
        place_of(on)


def test_an_address_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnavailableError, match=rf"ray://127.0.0.1:{port}: Connection refused"):
        place_of(f"ray://127.0.0.1:{port}")


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"potstill\[ray\]"):
        place_of("ray")


def test_a_place_crosses_to_another_process_as_json() -> None:
    place = place_of("ray", workers=4, shared=True)
    values = json.loads(json.dumps(dict(place.as_elsewhere().place)))
    assert place_from(values) == place


def test_a_stage_without_work_for_others_is_its_own_function() -> None:
    def function(*what: object) -> None:
        """Does something."""

    values = place_of("ray").as_elsewhere().place
    assert on_ray("curate", function, values) is function
    assert on_ray("ingest", function, values) is not function
    assert on_ray("generate", function, values) is not function


def test_workers_without_a_place(tmp_path: Path) -> None:
    recipe = Recipe.load("quickstart")
    with pytest.raises(UsageError, match="a cluster"):
        pipeline.run(recipe, tmp_path, workers=2)
    with pytest.raises(UsageError, match="no place"):
        pipeline.run(recipe, tmp_path, on="nowhere")
    assert not (tmp_path / "runs").exists()
