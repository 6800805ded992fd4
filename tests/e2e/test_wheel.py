"""What a user gets: the wheel holds the package and nothing else, and works by itself, without one
of the extras, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from clean_environment import ROOT, make_environment, size_bytes

import potstill

pytestmark = pytest.mark.whole
SECONDS = 120
CORE_BYTES = 250 * 10**6
"""At most this is installed without an extra; measured: 19 MB."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it, as `build` does."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("potstill-*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of an environment are that holds the wheel and what it needs alone."""
    python = make_environment(tmp_path_factory.mktemp("bare"))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(command, check=True, timeout=SECONDS)
    return python.parent


def tracked() -> set[str]:
    """The package's files, as git has them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/potstill"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def potstill_command(scripts: Path, folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [scripts / "potstill", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
        for name in names:
            assert archive.read(name) == (ROOT / "src" / name).read_bytes(), name
    assert {f"src/{name}" for name in names} == tracked()
    assert about["Version"] == potstill.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert {"serve", "train", "all"} <= set(about.get_all("Provides-Extra", []))


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    (found,) = built.glob("potstill-*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    around = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", "PKG-INFO"}
    assert names == tracked() | around


def test_the_commands_work_without_an_extra(scripts: Path, tmp_path: Path) -> None:
    code, said, _ = potstill_command(scripts, tmp_path, "--version")
    assert (code, said) == (0, f"potstill {potstill.__version__}\n")
    code, said, _ = potstill_command(scripts, tmp_path, "--help")
    assert code == 0
    assert "doctor" in said
    code, said, _ = potstill_command(scripts, tmp_path, "recipes", "quickstart", "--json")
    assert code == 0
    assert '"quickstart"' in said
    code, _, _ = potstill_command(scripts, tmp_path, "new", "mine")
    assert code == 0
    assert (tmp_path / "mine" / "recipe.yaml").is_file()


def test_the_doctor_says_what_to_add(scripts: Path, tmp_path: Path) -> None:
    code, said, wrong = potstill_command(scripts, tmp_path, "doctor")
    assert code == 6
    assert 'pip install "potstill[train]"' in said
    assert 'pip install "potstill[serve]"' in said
    assert "Traceback" not in wrong


def test_a_command_without_its_extra_is_one_line_and_the_way_out(
    scripts: Path, tmp_path: Path
) -> None:
    for command, extra in ((("run", "quickstart"), "curate"), (("studio",), "studio")):
        code, _, wrong = potstill_command(scripts, tmp_path, *command)
        assert code == 6
        assert f'pip install "potstill[{extra}]"' in wrong
        assert "Traceback" not in wrong


def test_the_core_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        own = sum(one.file_size for one in archive.infolist())
    assert own + size_bytes() < CORE_BYTES
