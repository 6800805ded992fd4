"""The study page's pictures: where a value stands, what is beyond the rim, what is escaped."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from potstill.tune.charts import Axis, Point, curves_chart, field_chart, trials_chart


def test_a_log_axis_gives_each_magnitude_the_same_room() -> None:
    axis = Axis([1e-4, 1e-2], 0, 100, log=True)
    assert axis.at(1e-3) == pytest.approx(50)
    assert axis.at(1e-2) - axis.at(1e-3) == pytest.approx(axis.at(1e-3) - axis.at(1e-4))
    assert {text for _, text in axis.ticks()} == {"0.0001", "0.001", "0.01"}


def test_categories_have_even_places_and_ticks_of_their_own() -> None:
    axis = Axis([], 0, 90, categories=["a", "b", "c"])
    assert [axis.at(one) for one in ("a", "b", "c")] == pytest.approx([15, 45, 75])
    assert axis.ticks() == [(pytest.approx(15), "a"), (pytest.approx(45), "b"), (75.0, "c")]


@pytest.mark.parametrize("values", [[0.2, 0.9], [3.0, 3.0], [0.0, 0.0], [-5.0, 1200.0]])
def test_linear_ticks_are_round_and_within_the_axis(values: list[float]) -> None:
    axis = Axis(values, 0, 100)
    found = axis.ticks()
    assert 2 <= len(found) <= 7
    assert all(0 <= place <= 100 for place, _ in found)


def test_one_diverged_trial_stands_at_the_rim_and_leaves_room_for_the_others() -> None:
    values = [0.4, 0.5, 0.45, 900.0]
    points = [Point(n, value, "complete", f"t{n}") for n, value in enumerate(values)]
    chart = trials_chart("KL", points, [0.4] * 4, "nats", complete=values, minimize=True)
    heights = [
        float(y) for y in re.findall(r'<circle class="mark [^>]* cy="([0-9.]+)" r="4"', chart)
    ]
    assert min(heights) == heights[3]  # the top rim
    assert max(heights[:3]) - min(heights[:3]) > 50


def test_pictures_are_sound_xml_with_everything_escaped_and_nan_left_out() -> None:
    points = [
        Point("<b>", 0.4, "best", "<i>"),
        Point("&", math.nan, "complete"),
        Point("&", 0.5, "pruned", "&"),
    ]
    chart = field_chart(
        "<f>", points, "<y>", log=False, categories=["<b>", "&"], complete=[0.4], minimize=True
    )
    root = ElementTree.fromstring(chart)
    assert len(root.findall(".//circle[@class='ring m-distilled']")) == 1
    assert len(root.findall(".//path[@class='cross']")) == 1
    assert len(root.findall(".//circle[@class='mark m-distilled']")) == 1
    curves = curves_chart("c", [("pruned", [(0, 3.0), (2, 4.0)]), ("best", [(0, 3.0)])], "y")
    assert ElementTree.fromstring(curves).findall(".//path[@class='cross']")
