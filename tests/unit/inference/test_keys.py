"""The key pool: who goes next, who waits, who is out, and that no key is ever shown."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.errors import ModelError
from potstill.inference.endpoint import EndpointConfig
from potstill.inference.keys import KeyPool, Lease, backoff, check_keys, open_pool

URL = "http://127.0.0.1:8000/v1"
SECRET = "sk-4kf93jf03kf/0+3k"


def pool(said: list[str] | None = None, **fields: Any) -> KeyPool:
    given = {"base_url": URL, "keys": ("KEY_A", "KEY_B"), **fields}
    environment = {"KEY_A": "a-secret-one", "KEY_B": "another-secret"}
    notes = [] if said is None else said
    return open_pool(EndpointConfig(**given), 0.0, lambda: 0.5, notes.append, environment)


def lease(keys: KeyPool, now: float, tokens: float = 10) -> Lease:
    found = keys.lease(tokens, now)
    assert isinstance(found, Lease)
    return found


def test_requests_go_to_the_least_busy_key() -> None:
    keys = pool(concurrency=2)
    names = [lease(keys, 0.0).key.variable for _ in range(4)]
    assert sorted(names) == ["KEY_A", "KEY_A", "KEY_B", "KEY_B"]
    assert names[0] != names[1]
    assert keys.lease(10, 0.0) is None


def test_a_returned_lease_makes_room() -> None:
    keys = pool(concurrency=1)
    first = lease(keys, 0.0)
    lease(keys, 0.0)
    keys.give_back(first, 5)
    assert lease(keys, 0.0).key is first.key


def test_each_key_has_limits_of_its_own() -> None:
    keys = pool(
        keys=("KEY_A", {"variable": "KEY_B", "requests_per_minute": 1}), requests_per_minute=600
    )
    names = [lease(keys, now * 0.11).key.variable for now in range(8)]
    assert names.count("KEY_B") == 1


def test_a_paused_key_waits_as_long_as_it_was_told_and_the_other_goes_on() -> None:
    keys = pool(concurrency=4)
    first = lease(keys, 0.0)
    assert keys.too_fast(first, 1.0, 7.5) == 7.5
    keys.give_back(first, 0)
    for _ in range(4):
        assert lease(keys, 1.0).key is not first.key
    assert keys.lease(10, 1.0) == 7.5
    assert lease(keys, 8.5).key is first.key


def test_without_a_word_how_long_it_waits_longer_each_time() -> None:
    keys = pool(keys=("KEY_A",))
    waits = []
    for _ in range(4):
        now = keys.keys[0].paused_until
        one = lease(keys, now)
        waits.append(keys.too_fast(one, now, None))
        keys.give_back(one, 0)
    assert waits == [0.5, 1.0, 2.0, 4.0]
    keys.went_well(lease(keys, 100.0))
    assert keys.too_fast(lease(keys, 100.0), 100.0, None) == 0.5


@given(st.integers(1, 60), st.floats(0, 1))
def test_backoff_is_bounded(failures: int, chance: float) -> None:
    assert 0 <= backoff(failures, chance) <= 60.0


def test_backoff_is_spread_over_its_whole_length() -> None:
    lot = random.Random(1)
    waits = [backoff(5, lot.random()) for _ in range(1000)]
    assert min(waits) < 0.2
    assert max(waits) > 15.8


def test_a_key_that_is_out_is_told_of_once_by_name() -> None:
    said: list[str] = []
    keys = pool(said)
    one, two = lease(keys, 0.0), lease(keys, 0.0)
    keys.take_out(one, "HTTP 401: revoked")
    keys.take_out(one, "HTTP 401: revoked")
    assert said == ["The key in KEY_A is used no more: HTTP 401: revoked. 1 key is left."]
    assert [key.variable for key in keys.live] == ["KEY_B"]
    assert keys.width == 8
    keys.take_out(two, "HTTP 401")
    assert keys.lease(1, 0.0) is None


def test_one_without_keys_is_asked_without() -> None:
    keys = pool(keys=())
    assert lease(keys, 0.0).key.headers == {}


@pytest.mark.parametrize("form", [SECRET, quote(SECRET, safe="")])
def test_keys_are_scrubbed_in_the_forms_they_come_back(form: str) -> None:
    endpoint = EndpointConfig(base_url=URL, keys=("K",))
    keys = open_pool(endpoint, 0.0, lambda: 0.5, print, {"K": SECRET})
    assert keys.scrub(f"bad key {form}, sorry") == "bad key [key], sorry"
    assert keys.scrub_reply(f"{form}") == "[key]"
    assert SECRET not in repr(keys.keys)


def test_a_placeholder_is_only_a_word_in_a_reply() -> None:
    endpoint = EndpointConfig(base_url=URL, keys=("K",))
    keys = open_pool(endpoint, 0.0, lambda: 0.5, print, {"K": "none"})
    assert keys.scrub_reply("none of it") == "none of it"
    assert keys.scrub("bad key none") == "bad key [key]"


def test_a_missing_key_is_left_out_and_the_same_key_counts_once() -> None:
    said: list[str] = []
    endpoint = EndpointConfig(base_url=URL, keys=("A", "B", "C"))
    keys = open_pool(endpoint, 0.0, lambda: 0.5, said.append, {"A": "x" * 9, "B": "x" * 9})
    assert [key.variable for key in keys.keys] == ["A"]
    assert len(said) == 2


@pytest.mark.parametrize("value", ["", "  ", "two words", "umläut-umläut", "line\nbreak-sk"])
def test_no_usable_key_is_one_error_that_names_the_variable(value: str) -> None:
    with pytest.raises(ModelError, match="KEY_A") as caught:
        check_keys(EndpointConfig(base_url=URL, keys=("KEY_A",)), {"KEY_A": value})
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_url": "localhost:8000"}, "http"),
        ({"base_url": "file:///etc/passwd"}, "http"),
        ({"base_url": "https://user:pass@host/v1"}, "password"),
        ({"base_url": "https://host/v1?key=abc"}, "query"),
        ({"keys": ("sk-abc-def",)}, "never keys"),
        ({"keys": ("A", "A")}, "twice"),
        ({"keys": ({"variable": "sk-abc"},)}, "pattern"),
        ({"extra": {"messages": []}}, "messages"),
        ({"structured": "xml"}, "json_schema"),
        ({"concurrency": 0}, "greater"),
    ],
)
def test_wrong_endpoints_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EndpointConfig(**{"base_url": URL, **fields})


def test_identity_is_the_address_the_model_and_the_body_not_the_keys() -> None:
    one = EndpointConfig(base_url=URL, keys=("A",), requests_per_minute=5)
    same = EndpointConfig(base_url=URL + "/", keys=("B",), price_per_million_input=3)
    assert one.identity("m") == same.identity("m")
    others = [
        one.identity("n"),
        EndpointConfig(base_url="http://127.0.0.1:8001/v1").identity("m"),
        EndpointConfig(base_url=URL, extra={"top_k": 1}).identity("m"),
        EndpointConfig(base_url=URL, structured="prompt").identity("m"),
    ]
    assert len({one.identity("m"), *others}) == 5


def test_a_quote_reckons_money_and_the_narrowest_limit() -> None:
    endpoint = EndpointConfig(
        base_url=URL,
        keys=("A", "B"),
        requests_per_minute=60,
        concurrency=100,
        price_per_million_input=2,
        price_per_million_output=8,
    )
    quote = endpoint.quote(1200, 500_000, 100_000)
    assert quote["money"] == pytest.approx(1.8)
    assert quote["seconds"] == pytest.approx(601)
    assert quote["tokens"] == 600_000
