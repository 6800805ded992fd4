"""A stage's key: the hash of everything that can change what the stage puts out.

In: a stage, its configuration, the digests of what it reads. Out: a key, and the named parts it
was made of, so that `plan` can say which part changed. Knows nothing of where results are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.core.stage import Stage, StageConfig
from potstill.records import schema_digest


@dataclass(frozen=True)
class StageKey:
    """`value` names the store entry; `parts` is what it was hashed from, by name."""

    value: str
    parts: Mapping[str, Any]


def stage_key(
    stage: Stage,
    config: StageConfig,
    inputs: Mapping[str, str],
    facts: Mapping[str, str],
    seed: int,
) -> StageKey:
    """The key of running `stage` with `config` on inputs with these content digests."""
    counted = config.model_dump(mode="json", exclude=set(type(config).not_in_key))
    parts: dict[str, Any] = {"stage": stage.name, "version": stage.version, "seed": seed}
    parts |= {f"config.{name}": value for name, value in counted.items()}
    parts |= {f"input.{name}": digest for name, digest in inputs.items()}
    parts |= {f"reads.{name}": digest for name, digest in facts.items()}
    parts["records"] = schema_digest()
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return StageKey(hashlib.sha256(text.encode()).hexdigest()[:32], parts)


def changed_parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which two keys differ, nested fields spelled out with dots."""
    changed: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += [f"{name}.{inner}" for inner in changed_parts(before, after)]
        else:
            changed.append(name)
    return changed
