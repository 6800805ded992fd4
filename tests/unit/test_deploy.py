"""deploy/: what is there can be rendered, fits the schema of whoever reads it, names commands that
exist, and keeps what was promised: no port beyond this machine, no account with rights, no torch
beside the service, and no address without a key."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from kubernetes_validate import validate
from packaging.requirements import Requirement

from potstill.cli import app
from potstill.serve.dashboard import ALERTS, DASHBOARD, write_monitoring

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ("compose.yaml", "compose.cuda.yaml")
KUBERNETES = "1.37"
OVERLAYS = ("cpu", "cuda")

# Fields of KubeRay's v1 API that the manifests use or could: its Go types, release 1.4
# (ray-operator/apis/ray/v1). Its own schema is in no package; pods are checked against Kubernetes'.
CLUSTER = {"headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"}
HEAD = {"rayStartParams", "template", "serviceType"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
RAY_SPECS = {
    "RayJob": {
        "entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "backoffLimit", "activeDeadlineSeconds", "runtimeEnvYAML", "rayClusterSpec", "suspend",
    },
    "RayService": {"serveConfigV2", "rayClusterConfig", "serveService"},
}  # fmt: skip
# Of SkyPilot 0.14's schema of a task (sky/utils/schemas.py); additionalProperties is false there.
TASK = {
    "name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "volumes",
    "setup", "run", "config", "service",
}  # fmt: skip
RESOURCES = {
    "infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size",
    "disk_tier", "image_id", "ports", "labels", "any_of", "ordered", "job_recovery", "autostop",
}  # fmt: skip

on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="a Linux machine runs it, as CI is: the linters are for it"
)


def tool(name: str, *arguments: str | Path) -> str:
    """Runs one of the environment's programs; returns what it printed. Errors: a failed test."""
    command = [Path(sys.executable).with_name(name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_command(words: list[str]) -> None:
    """Errors: a failed test if the command line has not this command with these options."""
    command: Any = typer.main.get_command(app)
    name, *words = words
    while hasattr(command, "commands"):
        command = command.commands[name]
        name, *words = words if hasattr(command, "commands") else (name, *words)
    command.make_context(name, words)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text("utf-8")))


def rendered(overlay: str) -> list[dict[str, Any]]:
    text = tool("kubectl", "kustomize", DEPLOY / "kubernetes" / "overlays" / overlay)
    return list(yaml.safe_load_all(text))


def pods(manifest: Any) -> Iterator[dict[str, Any]]:
    """Every pod template's spec in a manifest, however deep."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods(value)
    if isinstance(manifest, list):
        for value in manifest:
            yield from pods(value)


def ray(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "kubernetes" / "ray" / name).read_text("utf-8")))


@on_linux
def test_linters_find_nothing() -> None:
    tool("hadolint", "--config", ROOT / ".hadolint.yaml", DEPLOY / "docker" / "Dockerfile")
    tool("yamllint", "--strict", "--config-file", ROOT / ".yamllint.yaml", DEPLOY)
    schema = ("--builtin-schema", "vendor.compose-spec")
    tool("check-jsonschema", *schema, *(DEPLOY / name for name in COMPOSE))


def test_what_is_made_from_the_code_is_fresh(tmp_path: Path) -> None:
    write_monitoring(tmp_path)
    for name in (DASHBOARD, ALERTS):
        made = (tmp_path / name).read_text("utf-8")
        assert (DEPLOY / "monitoring" / name).read_text("utf-8") == made, "make format"
    rules = DEPLOY / "kubernetes" / "components" / "monitoring" / "rules.yaml"
    alerts = yaml.safe_load((tmp_path / ALERTS).read_text("utf-8"))
    assert yaml.safe_load(rules.read_text("utf-8"))["spec"] == alerts, "make format"


def test_every_stage_is_pinned_and_ends_without_rights() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text("utf-8")
    stages: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            assert base in stages or re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+[a-z0-9.-]*", base)
            stages[name] = list(stages.get(base, []))
        elif stages:
            stages[name].append(line)
    for name in ("serve", "cpu", "cuda"):
        users = [line.split()[1] for line in stages[name] if line.startswith("USER ")]
        assert users[-1] == "10001:10001"
        assert any(line.startswith("HEALTHCHECK ") for line in stages[name])
        assert 'ENTRYPOINT ["potstill"]' in stages[name]
    built = "\n".join(stages["build-serve"])
    assert "ARG EXTRAS=serve,llamacpp\n" in built  # which a test of `serve` shows to suffice
    for name in set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)):
        for source in name.split():
            assert (ROOT / source).exists()
            assert f"!{source}" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()


def test_the_image_builds_the_wheel_with_the_locked_backend_and_all_it_needs() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text("utf-8")
    named = re.search(r"grep -E '\^\(([a-z|-]+)\)=='", text)
    assert named is not None
    names = set(named[1].split("|"))
    needed = [Requirement(line) for line in importlib.metadata.requires("hatchling") or ()]
    applying = {one.name for one in needed if one.marker is None or one.marker.evaluate()}
    assert names == {"hatchling"} | applying
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert all(re.search(rf"^{name}==", lock, re.MULTILINE) for name in names)


def test_compose_opens_ports_to_this_machine_alone() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        assert "ALL" in service["cap_drop"]
        assert not service.get("privileged")
        for image in [service["image"]]:
            assert re.search(r":(v?\d+\.\d+\.\d+|serve|\$\{POTSTILL_STUDIO:-cpu\})$", image)
    # Loopback of the host, since the studio has no other; nothing else shares the host's network.
    assert [n for n, one in services.items() if one.get("network_mode") == "host"] == ["studio"]
    assert "ports" not in services["studio"]


def test_compose_serves_with_keys_and_holds_no_secret() -> None:
    file = compose()
    command = file["services"]["server"]["command"]
    assert "--host=0.0.0.0" in command
    assert "--keys=/project/keys.json" in command
    for name in ("server", "studio"):
        service = file["services"][name]
        check_command([re.sub(r"\$\{.*?:-(.*?)\}", r"\1", word) for word in service["command"]])
        secret = {"POTSTILL_ENGINE_KEY", "POTSTILL_ALERT_KEY", "HF_TOKEN"}
        given = service["environment"]
        assert all(given[one] is None for one in secret & set(given))  # taken from the caller's
        assert service["read_only"] is True
        assert service["user"] == "${POTSTILL_UID:-10001}:${POTSTILL_GID:-10001}"
    files = [one["file"] for one in file["configs"].values()]
    assert all((DEPLOY / one).is_file() for one in files)
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"/deploy/secrets/", ".env"} <= set(ignored)
    assert all(one["file"].startswith("secrets/") for one in file["secrets"].values())
    for service in file["services"].values():
        for one in service.get("configs", ()):
            assert one["source"] in file["configs"]
        assert set(service.get("secrets", ())) <= set(file["secrets"])


def test_prometheus_reads_the_service_and_the_rules_where_compose_puts_them() -> None:
    scraping = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text("utf-8"))
    places = {one["target"] for one in compose()["services"]["prometheus"]["configs"]}
    assert {f"/etc/prometheus/{name}" for name in scraping["rule_files"]} < places
    (job,) = scraping["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    provider = yaml.safe_load((DEPLOY / "monitoring/grafana/dashboards.yaml").read_text("utf-8"))
    folder = provider["providers"][0]["options"]["path"]
    targets = {one["target"] for one in compose()["services"]["grafana"]["configs"]}
    assert f"{folder}/{DASHBOARD}" in targets
    json.loads((DEPLOY / "monitoring" / DASHBOARD).read_text("utf-8"))


@on_linux
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_what_an_overlay_renders(overlay: str) -> None:
    found = rendered(overlay)
    kinds = [one["kind"] for one in found]
    assert kinds.count("Deployment") == 2
    assert kinds.count("Service") == 1  # of the service; the studio is on its pod's loopback alone
    for one in found:
        validate(one, KUBERNETES, strict=True)
    for pod in (pod for one in found for pod in pods(one)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        check_command(list(container["args"]))
        if "--host=0.0.0.0" in container["args"]:
            assert "--keys=/keys/keys.json" in container["args"]
        gpu = container["resources"]["limits"].get("nvidia.com/gpu")
        wanted = container["image"] == "potstill:cuda"
        assert gpu == ("1" if wanted else None)
        assert wanted == (overlay == "cuda" and container["name"] == "studio")


@on_linux
def test_monitoring_can_be_added_to_an_overlay(tmp_path: Path) -> None:
    base = DEPLOY / "kubernetes"
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(base / "overlays" / "cpu", tmp_path)],
        "components": [os.path.relpath(base / "components" / "monitoring", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text), "utf-8")
    found = list(yaml.safe_load_all(tool("kubectl", "kustomize", tmp_path)))
    service = next(one for one in found if one["kind"] == "Service")
    monitor = next(one for one in found if one["kind"] == "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert any(one["kind"] == "PrometheusRule" for one in found)


@pytest.mark.parametrize(
    ("name", "field"), [("rayjob", "rayClusterSpec"), ("rayservice", "rayClusterConfig")]
)
def test_ray_takes_its_manifests(name: str, field: str) -> None:
    found = ray(f"{name}.yaml")
    assert found["apiVersion"] == "ray.io/v1"
    spec = found["spec"]
    assert set(spec) <= RAY_SPECS[found["kind"]]
    cluster = spec[field]
    assert set(cluster) <= CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(one, str) for one in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}} | group["template"]
        validate(pod, KUBERNETES, strict=True)


def test_the_ray_job_runs_a_command_of_ours_and_the_ray_service_a_student() -> None:
    program, *words = shlex.split(ray("rayjob.yaml")["spec"]["entrypoint"])
    assert program == "potstill"
    assert words[words.index("--on") + 1].startswith("ray://127.0.0.1:")
    place = words.index("--on")  # the cluster's own tests hold that option
    check_command(words[:place] + words[place + 2 :])
    (application,) = yaml.safe_load(ray("rayservice.yaml")["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (model,) = application["args"]["llm_configs"]
    assert model["model_loading_config"]["model_source"].endswith("/export/safetensors")


def test_the_ray_jobs_pods_have_what_its_operator_asks_and_see_the_same_files() -> None:
    """KubeRay asks the dashboard's agents, which Ray without `default` does not start."""
    text = (DEPLOY / "kubernetes" / "ray" / "rayjob.yaml").read_text("utf-8")
    assert "EXTRAS=all,kuberay" in text
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    (brings,) = project["optional-dependencies"]["kuberay"]
    plain = project["optional-dependencies"]["ray"][0].partition("[")[2].partition("]")[0]
    assert set(brings.partition("[")[2].partition("]")[0].split(",")) == {
        "default",
        *plain.split(","),
    }
    assert "--shared" in shlex.split(ray("rayjob.yaml")["spec"]["entrypoint"])


def test_skypilot_takes_its_task() -> None:
    task = yaml.safe_load((DEPLOY / "skypilot" / "potstill.yaml").read_text("utf-8"))
    assert set(task) <= TASK
    assert set(task["resources"]) <= RESOURCES
    assert all(value == "" for value in task["secrets"].values())
    words = shlex.split(task["run"].replace("$RECIPE", "quickstart").replace("$PROJECT", "."))
    assert words[0] == "~/potstill/bin/potstill"
    check_command(words[1:])
