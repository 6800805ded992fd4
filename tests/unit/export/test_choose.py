"""The best file for a target, the recommendation without one, and what could be made."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.errors import UsageError
from potstill.export.choose import (
    TITLES,
    Target,
    chosen,
    parse_size,
    recommended,
    rows,
    worth_making,
)


def model(megabytes: float, kl: float, agreement: float, rate: float, f1: float) -> dict[str, Any]:
    figures = {"kl_student": kl, "agreement_student": agreement, "f1": 0.5 + f1}
    return {
        "file": f"student-{megabytes:g}.gguf",
        "disk_bytes": megabytes * 1e6,
        "peak_memory_bytes": megabytes * 1e6 + 200e6,
        "tokens_per_second": rate,
        "f1_difference": {"value": f1, "low": f1 - 0.02, "high": f1 + 0.02, "n": 9},
        "metrics": {name: {"value": value} for name, value in figures.items()},
    }


MODELS = {
    "gguf-f16": model(200, 1e-6, 1.0, 50, 0.0),
    "gguf-q8_0": model(106, 1e-3, 0.99, 80, 0.0),
    "gguf-q6_k": model(90, 5e-3, 0.96, 85, -0.01),
    "gguf-q4_k_m": model(70, 6e-2, 0.93, 100, -0.1),
    "gguf-q4_0": model(60, 1e-1, 0.85, 110, -0.01),
}


def test_the_best_file_within_a_target_is_the_nearest_to_the_student() -> None:
    assert chosen(MODELS, Target(fits=100_000_000)) == "gguf-q6_k"
    assert chosen(MODELS, Target(memory=310_000_000)) == "gguf-q8_0"
    assert chosen(MODELS, Target(speed=82)) == "gguf-q6_k"
    assert chosen(MODELS, Target(speed=105, fits=200_000_000)) == "gguf-q4_0"
    assert chosen(MODELS, Target()) == "gguf-f16"


def test_a_target_that_nothing_meets_says_what_each_file_needs() -> None:
    with pytest.raises(UsageError, match=r"student-60\.gguf 60\.0 MB on disk") as caught:
        chosen(MODELS, Target(fits=50_000_000))
    assert "distil a smaller student" in str(caught.value)
    with pytest.raises(UsageError, match=r"110\.0 tokens/s"):
        chosen(MODELS, Target(speed=1000))


def test_without_a_target_it_is_the_smallest_that_is_not_proven_worse() -> None:
    assert recommended(MODELS)[0] == "gguf-q6_k"  # q4_k_m answers worse, q4_0 agrees too seldom
    bad = {key: MODELS[key] for key in ("gguf-q4_0", "gguf-q4_k_m")}
    assert recommended(bad)[0] == "gguf-q4_k_m"
    assert "nearest" in recommended(bad)[1]


def test_only_kinds_that_could_fit_are_made() -> None:
    hundred = list(worth_making(135_000_000, Target(fits=100_000_000)))
    assert hundred == ["q4_0", "q4_k_m", "q5_k_m"]
    assert "f16" in list(worth_making(135_000_000, Target(speed=10)))


def test_the_table_has_the_largest_file_first_and_a_cell_for_each_title() -> None:
    table = rows(MODELS)
    assert [row[0] for row in table][::4] == ["student-200.gguf", "student-60.gguf"]
    assert all(len(row) == len(TITLES) for row in table)


@pytest.mark.parametrize(
    ("text", "size"),
    [("100MB", 100_000_000), ("1.5 GB", 1_500_000_000), ("96MiB", 96 * 2**20), ("7", 7)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0GB", "3 apples", "1,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)
