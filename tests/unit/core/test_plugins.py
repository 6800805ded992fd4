"""Plug-ins are found without being imported, and what is wrong with one names its package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_packages import on_the_path, write_example, write_package

from potstill import plugins as listed
from potstill.core import plugins
from potstill.errors import PluginError, RecipeError, error_from

GROUP = "potstill.filters"
BROKEN = """
class Plain:
    version = "1"
    def make(self, options):
        if options: raise ValueError("knows no options")
        return lambda *given: None

class NoVersion:
    def make(self, options): return print

class OddVersion(Plain):
    version = None

class MakesNothing(Plain):
    def make(self, options): return 7

class Fails(Plain):
    def make(self, options): return {}["gone"]

plain, no_version, odd_version = Plain(), NoVersion(), OddVersion()
makes_nothing, fails, no_make = MakesNothing(), Fails(), type("NoMake", (), {"version": "1"})()
"""
NAMES = "plain no_version odd_version makes_nothing fails no_make".split()


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[None]:
    """One package that works in part, one that cannot be imported, two that clash."""
    points = {one.replace("_", "-"): f"broken_plugin:{one}" for one in NAMES}
    write_package(tmp_path / "a", "broken", "1.5", {GROUP: points})
    (tmp_path / "a" / "broken_plugin.py").write_text(BROKEN)
    write_package(
        tmp_path / "b",
        "leaving",
        "2.0",
        {GROUP: {"absent": "broken_plugin_absent:X", "leaves": "broken_plugin_leaves:X"}},
    )
    (tmp_path / "b" / "broken_plugin_leaves.py").write_text("raise SystemExit('no\\nlicence')")
    for name in ("first", "second"):
        write_package(tmp_path / name, name, "1", {GROUP: {"twice": "broken_plugin:plain"}})
    folders = [tmp_path / one for one in ("a", "b", "first", "second")]
    with on_the_path(*folders):
        yield


def test_looking_imports_nothing(packages: None, tmp_path: Path) -> None:
    found = plugins.installed(GROUP)
    assert [str(one) for one in found if one.package == "broken"] == [
        f"{name.replace('_', '-')} (broken 1.5)" for name in sorted(NAMES)
    ]
    assert "broken_plugin" not in sys.modules
    plugins.load(GROUP, "plain", ("make",))
    assert "broken_plugin" in sys.modules
    assert "broken_plugin_leaves" not in sys.modules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "no plug-in nobody for potstill.filters.*Installed are: absent, fails"),
        ("absent", "absent of the package leaving 2.0 .* cannot be imported: ModuleNotFoundError"),
        ("leaves", "leaves of the package leaving 2.0 .* cannot be imported: SystemExit: no"),
        ("twice", "Two packages bring a plug-in twice .*: first 1 and second 1"),
        ("no-version", "broken 1.5 .* has no version"),
        ("odd-version", "broken 1.5 .* version that is neither"),
        ("no-make", "broken 1.5 .* has no make"),
    ],
)
def test_what_is_wrong_with_a_plug_in_is_one_line_that_names_its_package(
    packages: None, name: str, words: str
) -> None:
    with pytest.raises(PluginError, match=words) as caught:
        plugins.load(GROUP, name, ("make",))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 6
    assert isinstance(error_from(caught.value.as_dict), PluginError)


def test_options_are_the_plug_ins_own(packages: None) -> None:
    plain = plugins.load(GROUP, "plain")
    assert callable(plugins.options_of(plain, {}))
    with pytest.raises(RecipeError, match=r"plain \(broken 1.5\) does not take .*knows no options"):
        plugins.options_of(plain, {"a": 1})
    for name, words in (("fails", "failed to begin: KeyError"), ("makes-nothing", "made nothing")):
        with pytest.raises(PluginError, match=words):
            plugins.options_of(plugins.load(GROUP, name), {})


def test_the_identity_is_package_version_and_declared_version(packages: None) -> None:
    loaded = plugins.load(GROUP, "plain")
    assert loaded.identity == "broken 1.5, version 1"
    loaded.object.version = 2
    assert loaded.identity == "broken 1.5, version 2"


def test_the_example_has_one_of_each_kind_and_all_work(tmp_path: Path) -> None:
    with on_the_path(write_example(tmp_path / "site")):
        found = [one for one in listed.installed() if one.package == "potstill-example"]
        assert [one.group for one in found] == list(listed.POINTS)
        assert [listed.problem_of(one) for one in found] == [""] * len(found)
        assert "torch" not in vars(sys.modules["potstill_example.hellinger"])


def test_every_name_of_the_public_module_is_there() -> None:
    assert all(hasattr(listed, name) for name in listed.__all__)
    with pytest.raises(AttributeError):
        _ = listed.nothing  # type: ignore[attr-defined]
