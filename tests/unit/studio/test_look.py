"""The colours can be read by everybody, in light and in dark (WCAG 2.2, contrast), and the pages
load nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from potstill.studio.pages import FOLDER, STATIC

SHEETS = [STATIC[name][0].read_text("utf-8") for name in ("style.css", "studio.css")]
BACKGROUNDS = ("--paper", "--faint", "--field")
TEXTS = ("--ink", "--muted", "--action", "--good", "--bad", "--wait")


def colours(scheme: str) -> dict[str, str]:
    """The sheets' variables as that scheme has them."""
    found: dict[str, str] = {}
    for sheet in SHEETS:
        light = re.search(r"^:root \{(.*?)\n\}", sheet, re.DOTALL | re.MULTILINE)
        dark = re.search(r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", sheet, re.DOTALL)
        assert light
        assert dark
        for block in (light, dark)[: 1 if scheme == "light" else 2]:
            found |= dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", block[1]))
            found |= {
                name: "#" + "".join(2 * one for one in short)
                for name, short in re.findall(r"(--[a-z0-9-]+): #([0-9a-f]{3});", block[1])
            }
    return found


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_measure_itself() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_the_contrast_of_aa(scheme: str) -> None:
    found = colours(scheme)
    for text in TEXTS:
        for background in BACKGROUNDS:
            assert contrast(found[text], found[background]) >= 4.5, (text, background)
    assert contrast(found["--on-action"], found["--action"]) >= 4.5
    for background in ("--mark", "--sentence"):
        assert contrast(found["--ink"], found[background]) >= 7
    shades = [found[f"--kl-{number}"] for number in (1, 2, 3, 4)]
    for shade in shades:
        assert contrast(found["--ink"], shade) >= 4.5
    lightness = [luminance(one) for one in (found["--paper"], *shades)]
    assert lightness == sorted(lightness, reverse=scheme == "light")  # grey alone tells them apart
    for edge in ("--edge", "--action"):  # what tells a control from the page
        assert contrast(found[edge], found["--paper"]) >= 3


def test_pages_load_nothing_from_elsewhere_and_run_nothing_inline() -> None:
    for path in sorted((FOLDER / "templates").glob("*.j2")):
        text = path.read_text("utf-8")
        assert not re.search(r"(src|href)=\"(https?:)?//", text), path.name
        assert not re.search(r"\son[a-z]+=|style=\"|javascript:", text), path.name
        assert "| safe" not in text, path.name
        loaded = re.findall(r"/static/([a-z.]+)", text)
        assert set(loaded) <= set(STATIC), path.name
    for path in sorted((FOLDER / "static").glob("*.js")):
        assert not re.search(r"https?://|eval\(|document\.write", path.read_text("utf-8")), (
            path.name
        )


def test_every_control_has_a_label() -> None:
    control = re.compile(r"<(?:input|select|textarea)\b[^>]*>")
    for path in sorted((FOLDER / "templates").glob("*.j2")):
        text = path.read_text("utf-8")
        for found in control.findall(text):
            if 'type="hidden"' in found or "{{ common }}" in found:
                continue
            identity = re.search(r'id="([^"]+)"', found)
            assert identity, (path.name, found)
            assert f'for="{identity[1]}"' in text, (path.name, identity[1])


def test_no_file_of_the_studio_is_missing_from_the_list() -> None:
    there = {path.name for path in (FOLDER / "static").iterdir()}
    assert there == {path.name for path, _ in STATIC.values()} - {"style.css"}
    assert all(isinstance(path, Path) and path.is_file() for path, _ in STATIC.values())
