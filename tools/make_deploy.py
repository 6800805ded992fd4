"""Writes what in deploy/ is made from the code: dashboard and alert rules.

    python tools/make_deploy.py            # writes them
    python tools/make_deploy.py --check    # fails if one is not as it would be written

In: the service's own figures (`potstill monitoring`). Out: files in deploy/.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml

from potstill.serve.dashboard import alerts, write_monitoring

ROOT = Path(__file__).parents[1]
MONITORING = "deploy/monitoring"
RULES = "deploy/kubernetes/components/monitoring/rules.yaml"


def made() -> dict[str, str]:
    """What is written, by path below the repository's folder."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_monitoring(Path(folder))
        found = {f"{MONITORING}/{file.name}": file.read_text("utf-8") for file in files}
    rules = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "potstill", "labels": {"app.kubernetes.io/part-of": "potstill"}},
        "spec": alerts(),
    }
    words = "# Written by tools/make_deploy.py.\n"
    return found | {RULES: words + yaml.safe_dump(rules, sort_keys=False, width=200)}


def main() -> None:
    """Write, or compare. Exits with 1 if a file is out of date."""
    stale = []
    for name, text in made().items():
        path = ROOT / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
    if stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Write them with: python tools/make_deploy.py")


if __name__ == "__main__":
    main()
