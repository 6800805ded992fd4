"""The page: its states, several students, and texts that must stay texts."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.serve.drift_page import page, rounded, share

HOSTILE = "<script>alert('a')</script>"


def signal(name: str, adjusted: float, statistic: str = "psi", **more: Any) -> dict[str, Any]:
    made = {
        "name": name, "statistic": statistic, "value": 0.31, "p": adjusted / 2, "against": "rows",
        "shares": [["a", 0.25, 0.5], [HOSTILE, 0.75, 0.5]] if statistic == "psi" else [],
        "adjusted": adjusted, "alarm": adjusted <= 0.01,
    }  # fmt: skip
    return made | more


def window(
    number: int, variant: str = "tiny", adjusted: float = 1.0, **more: Any
) -> dict[str, Any]:
    signals = [signal("meaning", 0.5, "mmd"), signal("topic", adjusted)]
    made = {
        "id": number, "time": 1.8e9, "variant": variant, "first": 1, "last": 100, "requests": 100,
        "level": 0.01, "alarm": adjusted <= 0.01, "dismissed": None, "alerted": "",
        "verdict": {
            "signals": signals, "untested": {"language": "the package is missing"}, "rows": 120,
            "alarm": adjusted <= 0.01,
        },
    }  # fmt: skip
    return made | more


def drift(*windows: dict[str, Any], state: str = "calm", off: str = "") -> dict[str, Any]:
    about = {"windows": 2, "alarms": 1, "dismissed": 0, "by_chance": 0.02, "waiting": 7}
    variants = {one["variant"]: about | {"state": state} for one in windows}
    return {"run": "r", "requests": 9, "off": off, "variants": variants, "windows": list(windows)}


def test_a_service_that_was_never_asked() -> None:
    text = page(drift(off="There are no rows."))
    assert "No request was answered yet." in text
    assert "Nothing is compared. There are no rows." in text
    assert "There was none." in text
    assert "<svg" not in text


def test_signals_chart_shares_and_alarms() -> None:
    text = page(drift(window(1), window(2, adjusted=0.004, alerted="sent"), state="alarm"))
    assert "has moved away" in text
    assert text.count("<polyline") == 3  # two signals and the level
    assert "topic of the question · moved" in text
    assert "language of the question (the package is missing)" in text
    assert "false alarms may come more often" in text  # 120 rows are few
    assert "potstill drift r --dismiss ID" in text
    assert ">sent<" in text
    assert ">stands<" in text


def test_an_alarm_that_was_marked() -> None:
    text = page(drift(window(1, adjusted=0.004, dismissed=1.8e9), state="dismissed"))
    assert "The newest alarm was marked as false." in text
    assert "marked as false, 2027-01-15 08:00 UTC" in text


def test_each_student_has_a_part_of_its_own() -> None:
    text = page(drift(window(1), window(2, "candidate")))
    assert "Newest window of tiny" in text
    assert "Newest window of candidate" in text


@pytest.mark.parametrize("where", ["run", "variant", "topic"])
def test_texts_stay_texts_and_nothing_is_loaded(where: str) -> None:
    made = drift(window(1, HOSTILE if where == "variant" else "tiny", adjusted=0.001))
    made["run"] = HOSTILE if where == "run" else "r"
    text = page(made)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_figures_for_people() -> None:
    assert [rounded(one) for one in (0.0005, 0.31234, -0.00012)] == ["0.0005", "0.312", "-0.0001"]
    assert share(0.1234) == "12.3%"
