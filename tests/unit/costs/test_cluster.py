"""Clusters by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.costs.cluster import Cluster, accelerators, parse_cluster
from potstill.errors import UsageError

CARDS = [one for one in accelerators().values() if one.name != "cpu"]


@given(st.sampled_from(CARDS), st.integers(1, 500), st.integers(1, 8))
def test_a_name_that_is_written_is_read_again(one: object, hosts: int, devices: int) -> None:
    assert hasattr(one, "in_a_host")
    cluster = Cluster(one, hosts, min(devices, one.in_a_host))  # type: ignore[arg-type]
    assert parse_cluster(cluster.name) == cluster
    assert parse_cluster(cluster.name.upper()) == cluster
    assert cluster.times(2).ranks >= 2 * cluster.ranks


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("8xH10", "no accelerator 'H10'", "Did you mean H100? Known: H100, A100-80GB"),
        ("8xTPU", "no accelerator 'TPU'", "Known: H100"),
        ("", "is no cluster", "Known accelerators: H100"),
        ("8 x H100", "is no cluster", "Known"),
        ("1x2x3xH100", "is no cluster", "Known"),
        ("0xH100", "at least one device", "1xH100"),
        ("16xH100", "No host has 16", "2x8xH100"),
        ("2xcpu", "No host has 2", "2x1xcpu"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_known_ones(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")) as raised:
        parse_cluster(text)
    assert hint in raised.value.hint


def test_every_row_has_a_document_and_a_date_and_believable_rates() -> None:
    for one in accelerators().values():
        assert one.source
        assert one.read.year >= 2026
        assert one.number_bytes == (4 if one.name == "T4" else 2)
        assert one.flops / one.bandwidth > 10  # operations a byte: all are far from balanced
        assert one.link < one.bandwidth


def test_several_hosts_are_as_fast_as_the_slower_of_link_and_network() -> None:
    assert parse_cluster("8xH100").interconnect == 450e9
    assert parse_cluster("2x8xH100").interconnect == 400e9
    assert parse_cluster("2x4xL40S").interconnect == 12.5e9
