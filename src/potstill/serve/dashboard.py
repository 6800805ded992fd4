"""A Grafana dashboard and Prometheus alert rules for the service, made from its own figures.

In: the definitions of `monitor.py`. Out: a dashboard (Grafana's JSON model) with a panel for each
figure, below a first row that says at a glance whether all is well; a rule file. Nothing here can
name a figure that is not there: `tests/unit/serve/test_dashboard.py` parses every expression.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from potstill.core.files import disk_errors, write_atomic
from potstill.serve.monitor import Defined, Figures

DASHBOARD, ALERTS = "potstill-dashboard.json", "potstill-alerts.yaml"
INTERVAL = "$__rate_interval"
CHOSEN = '{instance=~"$instance"}'
"""What every panel is limited to: the services that were chosen above the dashboard."""
WIDTH, HEIGHT = 24, 8
QUANTILES = (0.5, 0.95, 0.99)
UNITS = {"_seconds": "s", "_per_second": "short", "_bytes": "bytes"}

ERROR_SHARE = (
    'sum(rate(potstill_requests_total{status=~"5.."%s}[%s])) / '
    "sum(rate(potstill_requests_total{%s}[%s]))"
)
FIRST_TOKEN = (
    "histogram_quantile(0.95, sum by (le) "
    "(rate(potstill_time_to_first_token_seconds_bucket%s[%s])))"
)

RULES: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "PotstillAbsent",
        "absent(potstill_ready)",
        "5m",
        "critical",
        "No Potstill service is scraped: it is down, or Prometheus does not reach it.",
    ),
    (
        "PotstillNotReady",
        "potstill_ready == 0",
        "2m",
        "critical",
        "The engine of {{ $labels.instance }} does not answer.",
    ),
    (
        "PotstillServerErrors",
        "sum by (instance) (rate(potstill_requests_total{status=~'5..'}[5m])) / "
        "sum by (instance) (rate(potstill_requests_total[5m])) > 0.01",
        "5m",
        "critical",
        "More than 1% of the requests at {{ $labels.instance }} fail.",
    ),
    (
        "PotstillEngineRestarts",
        "increase(potstill_engine_restarts_total[15m]) > 1",
        "0m",
        "warning",
        "The engine of {{ $labels.instance }} ended by itself more than once in 15 minutes.",
    ),
    (
        "PotstillOverloaded",
        "sum by (instance) (rate(potstill_errors_total{code=~'queue_full|queue_timeout'}[5m])) / "
        "sum by (instance) (rate(potstill_requests_total[5m])) > 0.05",
        "10m",
        "warning",
        "More than 5% of the requests at {{ $labels.instance }} find no place in the queue.",
    ),
    (
        "PotstillSlowFirstToken",
        "histogram_quantile(0.95, sum by (instance, le) "
        "(rate(potstill_time_to_first_token_seconds_bucket[5m]))) > 10",
        "10m",
        "warning",
        "At {{ $labels.instance }} one answer in twenty begins after more than 10 seconds.",
    ),
    (
        "PotstillStoreRefuses",
        "increase(potstill_errors_total{code='store_unavailable'}[10m]) > 0",
        "0m",
        "critical",
        "The disk of {{ $labels.instance }} refuses: feedback or documents are not taken.",
    ),
    (
        "PotstillManyWrongKeys",
        "increase(potstill_errors_total{code='invalid_api_key'}[10m]) > 100",
        "0m",
        "warning",
        "Somebody tries keys at {{ $labels.instance }}, or a revoked one is still in use.",
    ),
)
"""(name, expression, for how long, severity, what it means)."""


def write_monitoring(folder: Path) -> tuple[Path, Path]:
    """Write the dashboard and the alert rules into a folder; returns both files.

    Errors: StoreError if the disk refuses; MissingExtraError without `potstill[serve]`.
    """
    files = folder / DASHBOARD, folder / ALERTS
    with disk_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(files[0], json.dumps(dashboard(Figures().defined), indent=1) + "\n")
    write_atomic(files[1], yaml.safe_dump(alerts(), sort_keys=False, width=200))
    return files


def alerts() -> dict[str, Any]:
    """A rule file for Prometheus."""
    rules = [
        {
            "alert": name,
            "expr": expression,
            "for": lasting,
            "labels": {"severity": severity},
            "annotations": {"summary": words},
        }
        for name, expression, lasting, severity, words in RULES
    ]
    return {"groups": [{"name": "potstill", "rules": rules}]}


def dashboard(figures: list[Defined]) -> dict[str, Any]:
    """Grafana's JSON model: four numbers, then one panel for each figure."""
    panels = list(_glance())
    for number, figure in enumerate(figures):
        place = {"x": 12 * (number % 2), "y": 4 + HEIGHT * (number // 2), "w": 12, "h": HEIGHT}
        panels.append(_panel(figure) | {"gridPos": place})
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "potstill",
        "title": "Potstill",
        "tags": ["potstill"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _glance() -> Iterator[dict[str, Any]]:
    limited = CHOSEN[1:-1]
    shown = (
        ("Ready", f"min(potstill_ready{CHOSEN})", "bool_yes_no"),
        ("Requests a second", f"sum(rate(potstill_requests_total{CHOSEN}[{INTERVAL}]))", "reqps"),
        (
            "Failed",
            ERROR_SHARE % (f", {limited}", INTERVAL, limited, INTERVAL),
            "percentunit",
        ),
        ("95% begin within", FIRST_TOKEN % (CHOSEN, INTERVAL), "s"),
    )
    width = WIDTH // len(shown)
    for number, (title, expression, unit) in enumerate(shown):
        panel = _drawn("stat", title, "", unit, [(expression, "")])
        yield panel | {"gridPos": {"x": width * number, "y": 0, "w": width, "h": 4}}


def _panel(figure: Defined) -> dict[str, Any]:
    title = figure.name.removeprefix("potstill_").removesuffix("_total").replace("_", " ")
    unit = next((unit for end, unit in UNITS.items() if figure.name.endswith(end)), "short")
    targets = list(_targets(figure))
    return _drawn("timeseries", title.capitalize(), figure.words, unit, targets)


def _targets(figure: Defined) -> Iterator[tuple[str, str]]:
    """(expression, legend) of each line of a panel."""
    if figure.kind == "Histogram":
        for quantile in QUANTILES:
            inner = f"rate({figure.name}_bucket{CHOSEN}[{INTERVAL}])"
            yield (
                f"histogram_quantile({quantile}, sum by (le) ({inner}))",
                f"{round(100 * quantile)}%",
            )
        return
    legend = " ".join(f"{{{{{name}}}}}" for name in figure.labels) or "{{instance}}"
    by = ", ".join(figure.labels or ("instance",))
    value = f"{figure.name}{CHOSEN}"
    if figure.kind == "Counter":
        value = f"rate({value}[{INTERVAL}])"
    yield f"sum by ({by}) ({value})", legend


def _drawn(
    kind: str, title: str, words: str, unit: str, targets: list[tuple[str, str]]
) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": kind,
        "title": title,
        "description": words,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend,
            }
            for number, (expression, legend) in enumerate(targets)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    query = "label_values(potstill_ready, instance)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Service",
            "type": "query",
            "datasource": source,
            "query": {"query": query, "refId": "instance"},
            "definition": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
