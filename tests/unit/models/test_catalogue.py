"""What the catalogue says of each published model is what transformers builds of it."""

from __future__ import annotations

import pytest

from potstill.models.catalogue import PUBLISHED, Published, published
from potstill.models.shape import FAMILIES, shape_of_config


@pytest.mark.parametrize("known", PUBLISHED.values(), ids=list(PUBLISHED))
def test_a_model_of_that_config_has_those_parameters(known: Published) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**known.config)
    for name, value in known.config.items():
        if name != "architectures":
            assert getattr(config, name) == value
    with torch.device("meta"):
        model = getattr(transformers, known.config["architectures"][0])(config)
    model.tie_weights()
    assert sum(one.numel() for one in model.parameters()) == known.parameters


@pytest.mark.parametrize("known", PUBLISHED.values(), ids=list(PUBLISHED))
def test_the_shapes_that_cuts_reckon_with_come_to_the_same(known: Published) -> None:
    if known.config["model_type"] in FAMILIES:
        assert shape_of_config(known.config).parameters == known.parameters


def test_a_name_is_known_exactly_or_not_at_all() -> None:
    assert published("google/gemma-7b-it") is PUBLISHED["google/gemma-7b-it"]
    assert published("google/gemma-7b-it-2") is None


def test_bytes_are_those_of_the_files() -> None:
    """Of the sizes that the hub shows, rounded as it does: 3.25 GB, 353 MB, 268 MB, 17.1 GB."""
    for name, gigabytes in (
        ("openai-community/gpt2-large", 3.247),
        ("distilbert/distilgpt2", 0.353),
        ("distilbert/distilbert-base-uncased", 0.268),
        ("google/gemma-7b-it", 17.08),
    ):
        assert PUBLISHED[name].bytes / 1e9 == pytest.approx(gigabytes, rel=2e-3)
