"""What is part of a stage's key, and what is not."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from potstill.core.keys import changed_parts, stage_key
from potstill.core.stage import Stage, StageConfig


class Config(StageConfig):
    not_in_key: ClassVar[frozenset[str]] = frozenset({"workers"})
    size: int = 1
    inner: dict[str, int] = Field(default_factory=dict)
    workers: int = 1


STAGE = Stage("test", 1, Config, ("before",), "nowhere:run")


def key(config: Config, stage: Stage = STAGE, seed: int = 0, digest: str = "d") -> str:
    return stage_key(stage, config, {"before": digest}, {"model": "m"}, seed).value


def test_every_field_counts_unless_it_is_exempt() -> None:
    assert key(Config()) != key(Config(size=2))
    assert key(Config()) != key(Config(inner={"a": 1}))
    assert key(Config()) == key(Config(workers=8))


def test_inputs_seed_and_version_count() -> None:
    newer = Stage("test", 2, Config, ("before",), "nowhere:run")
    assert len({key(Config()), key(Config(), newer), key(Config(), seed=1)}) == 3
    assert key(Config()) != key(Config(), digest="e")


def test_a_key_does_not_depend_on_the_order_of_fields() -> None:
    assert key(Config(inner={"a": 1, "b": 2})) == key(Config(inner={"b": 2, "a": 1}))


def test_the_changed_field_is_named_with_its_place() -> None:
    old = stage_key(STAGE, Config(inner={"a": 1}), {"before": "d"}, {}, 0).parts
    new = stage_key(STAGE, Config(inner={"a": 2}, size=3), {"before": "d"}, {}, 0).parts
    assert changed_parts(old, new) == ["config.inner.a", "config.size"]
