"""Accelerators and clusters by name: 8xH100, 2x8xA100-80GB, cpu.

In: a name. Out: a `Cluster` with rates and memory, from `machines.yaml`. Knows no model and no
stage; asks no hardware but this machine's own size, for `cpu`.
"""

from __future__ import annotations

import datetime
import importlib.resources
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import yaml

from potstill.core import machine
from potstill.core.costs import FITTED_CORES
from potstill.core.fields import nearest
from potstill.errors import UsageError

CLUSTER = re.compile(r"(?:(\d{1,5})x)?(?:(\d{1,5})x)?([a-z][a-z0-9-]*)", re.IGNORECASE)
HERE = "cpu"


@dataclass(frozen=True)
class Accelerator:
    """One device and its share of the host it is in; all rates are the documents' peaks."""

    name: str
    flops: float
    """Dense operations a second, in the type that `precision: auto` takes there."""
    number_bytes: int
    """Of a number of that type: 2 for bf16, 4 for fp32."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second to and from its memory."""
    link: float
    """Bytes a second to the others of its host, one direction."""
    network: float
    """Bytes a second out of the whole host, one direction."""
    disk: float
    """Bytes a second of the host's disk; an assumption."""
    in_a_host: int
    source: str
    read: datetime.date
    measured: bool = False
    """Whether the rates are measurements of ours instead of a document's peaks."""


@dataclass(frozen=True)
class Cluster:
    """`hosts` alike, each with `devices` accelerators."""

    accelerator: Accelerator
    hosts: int = 1
    devices: int = 1

    @property
    def ranks(self) -> int:
        """Processes of a training: one a device."""
        return self.hosts * self.devices

    @property
    def name(self) -> str:
        """As it is written: 2x8xA100-80GB."""
        hosts = f"{self.hosts}x" if self.hosts > 1 else ""
        devices = f"{self.devices}x" if self.ranks > 1 else ""
        return f"{hosts}{devices}{self.accelerator.name}"

    @property
    def interconnect(self) -> float:
        """Bytes a second that a rank can send in a ring over all of them, one direction.

        Rings of several hosts leave each host over all of its network ports together, so the slower
        of a device's link and the host's network bounds every rank (the "bus bandwidth" of NCCL's
        tests).
        """
        one = self.accelerator
        return min(one.link, one.network) if self.hosts > 1 else one.link

    def times(self, factor: int) -> Cluster:
        """So many times the devices: full hosts first, then more of them."""
        ranks = self.ranks * factor
        devices = min(ranks, max(self.devices, self.accelerator.in_a_host))
        return replace(self, devices=devices, hosts=-(-ranks // devices))


@lru_cache(maxsize=1)
def accelerators() -> dict[str, Accelerator]:
    """All that are known, by name."""
    return {name: Accelerator(name=name, **fields) for name, fields in table("machines").items()}


def table(name: str) -> dict[str, dict[str, Any]]:
    """A table of data of this package."""
    text = (importlib.resources.files("potstill.costs") / f"{name}.yaml").read_text("utf-8")
    read = yaml.safe_load(text)
    return {key: {field: _number(one) for field, one in row.items()} for key, row in read.items()}


def _number(value: Any) -> Any:
    """YAML 1.1 takes 80.0e9 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_cluster(text: str) -> Cluster:
    """The cluster of that name: [hosts x] [devices of a host x] accelerator, whatever its case.

    Errors: UsageError, with the known names.
    """
    known = {name.lower(): one for name, one in accelerators().items()}
    names = ", ".join(accelerators())
    found = CLUSTER.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{text!r} is no cluster: write 8xH100, 2x8xH100 for two hosts, or cpu.",
            f"Known accelerators: {names}.",
        )
    first, second, name = found.groups()
    one = known.get(name.lower())
    if one is None:
        hint = nearest(name.lower(), known)
        near = known[hint.split()[-1].rstrip("?")].name if hint else ""
        hint = f"Did you mean {near}? " if near else ""
        raise UsageError(
            f"There is no accelerator {name!r} in the table.", f"{hint}Known: {names}."
        )
    hosts, devices = (int(first), int(second)) if second else (1, int(first or 1))
    if hosts < 1 or devices < 1:
        raise UsageError(f"{text!r}: a cluster has at least one device.", "Write 1xH100.")
    if devices > one.in_a_host:
        many = -(-devices // one.in_a_host)
        raise UsageError(
            f"No host has {devices} of {one.name}: at most {one.in_a_host}.",
            f"Several hosts are written {many}x{one.in_a_host}x{one.name}.",
        )
    return Cluster(_here(one) if one.name == HERE else one, hosts, devices)


def _here(one: Accelerator) -> Accelerator:
    """This machine's processor: by its cores, and with the memory it has."""
    share = machine.usable_cores() / FITTED_CORES
    memory = float(machine.most_memory_bytes() or one.memory)
    return replace(one, flops=one.flops * share, bandwidth=one.bandwidth * share, memory=memory)
