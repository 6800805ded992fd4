"""Every expression of the dashboard and of the alerts is PromQL over figures that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import potstill.serve
from potstill.cli import app
from potstill.serve.dashboard import ALERTS, DASHBOARD, alerts, dashboard
from potstill.serve.monitor import Figures

OURS = {"instance"}
"""Labels that Prometheus puts to every figure."""


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(figure, its (label, value) matchers) of an expression. Errors: ValueError if it is none."""
    found: list[tuple[str, list[tuple[str, str]]]] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = [(one.name, one.value) for one in node.matchers.matchers]
            found.append((node.name, matchers))
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def expressions() -> list[str]:
    drawn = dashboard(Figures().defined)
    panels = [target["expr"] for panel in drawn["panels"] for target in panel["targets"]]
    rules = [rule["expr"] for group in alerts()["groups"] for rule in group["rules"]]
    return [one.replace("$__rate_interval", "5m") for one in panels] + rules


def served_figures() -> dict[str, set[str]]:
    """Every figure that a scrape of a service shows, with its labels."""
    figures = Figures()
    for one in figures.defined:
        made = getattr(figures, next(n for n, v in vars(figures).items() if _is(v, one.name)))
        if one.labels:
            made.labels(*("x" for _ in one.labels))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(figures.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _is(value: Any, name: str) -> bool:
    return getattr(value, "_name", None) in (name, name.removesuffix("_total"))


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_is_promql_over_figures_that_there_are(expression: str) -> None:
    there = served_figures()
    found = selectors(expression)
    assert found
    for name, matchers in found:
        assert name in there
        for label, _ in matchers:
            assert label in there[name] | OURS


def test_what_is_no_promql_is_seen() -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        selectors("sum(rate(potstill_requests_total[5m])")
    assert selectors('a{b="c"} / on(x) rate(d[5m])') == [("a", [("b", "c")]), ("d", [])]


def test_every_figure_has_its_panel() -> None:
    shown = {name for one in expressions() for name, _ in selectors(one)}
    for one in Figures().defined:
        assert (one.name if one.kind != "Histogram" else f"{one.name}_bucket") in shown
    places = [panel["gridPos"] for panel in dashboard(Figures().defined)["panels"]]
    taken = {(x, y) for p in places for x in range(p["x"], p["x"] + p["w"])
             for y in range(p["y"], p["y"] + p["h"])}  # fmt: skip
    assert len(taken) == sum(p["w"] * p["h"] for p in places)
    assert all(p["x"] + p["w"] <= 24 for p in places)


def test_the_codes_of_the_alerts_are_codes_of_the_service() -> None:
    folder = Path(potstill.serve.__file__).parent
    source = "".join(one.read_text() for one in folder.glob("*.py") if one.stem != "dashboard")
    codes = [
        code
        for rule in alerts()["groups"][0]["rules"]
        for _, matchers in selectors(rule["expr"])
        for label, value in matchers
        if label == "code"
        for code in value.split("|")
    ]
    assert len(codes) >= 4
    for code in codes:
        assert f'"{code}"' in source


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["monitoring", str(tmp_path / "new")])
    assert done.exit_code == 0
    drawn = json.loads((tmp_path / "new" / DASHBOARD).read_text())
    assert drawn == dashboard(Figures().defined)
    rules = yaml.safe_load((tmp_path / "new" / ALERTS).read_text())
    assert rules == alerts()
    assert all(rule["annotations"]["summary"] for rule in rules["groups"][0]["rules"])
    assert len({panel["id"] for panel in drawn["panels"]}) == len(drawn["panels"])
