"""What a recipe may say about a teacher behind an address: where, with which keys, how fast.

In: fields. Out: a validated, immutable config; what requests would cost. Keys are names of
environment variables: a key itself has no place in a recipe. Knows no client and opens nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from potstill.inference.base import LocalBackend
from potstill.inference.teacher_plugins import is_plugin

PREFIX = "openai:"  # a model reference that names a model behind an address: openai:MODEL
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_FIELDS = frozenset(
    (
        "messages model stream stream_options n response_format max_tokens max_completion_tokens"
    ).split()
)
ENGINES = frozenset(get_args(LocalBackend)) - {"auto", "fake"}
REPLY_SECONDS = 3.0  # what a plan reckons for one reply of a hosted model

Structured = Literal["auto", "json_schema", "json_object", "prompt"]


class KeyConfig(BaseModel):
    """One key with limits of its own; what is not given is the endpoint's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variable: str = Field(
        pattern=rf"^{VARIABLE.pattern}$", description="Name of the environment variable."
    )
    requests_per_minute: int | None = Field(None, ge=1, description="Most requests a minute.")
    tokens_per_minute: int | None = Field(None, ge=1, description="Most tokens a minute.")
    concurrency: int | None = Field(None, ge=1, le=1024, description="Most requests at once.")


class EndpointConfig(BaseModel):
    """An address that speaks OpenAI's chat completions, and what it allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field(
        description="The address that /chat/completions is put behind, for example "
        "http://127.0.0.1:8000/v1."
    )
    keys: tuple[str | KeyConfig, ...] = Field(
        (),
        description="Name of the environment variable that holds the key, or a list of names and "
        "of sections with a variable and its own limits. Empty: no key is sent.",
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="Most requests a minute for each key; nothing: no limit."
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Most tokens a minute for each key, prompts and replies together."
    )
    concurrency: int = Field(
        8,
        ge=1,
        le=1024,
        description="Most requests at once for each key; fewer while the endpoint is overloaded.",
    )
    price_per_million_input: float = Field(
        0.0, ge=0, description="Price of a million prompt tokens, in any currency."
    )
    price_per_million_output: float = Field(
        0.0, ge=0, description="Price of a million reply tokens, in the same currency."
    )
    connect_seconds: float = Field(10.0, gt=0, le=600, description="Longest wait to connect.")
    first_byte_seconds: float = Field(
        120.0, gt=0, le=7200, description="Longest wait for the first byte of a reply."
    )
    timeout_seconds: float = Field(
        300.0, gt=0, le=7200, description="Longest wait for a whole reply."
    )
    max_retries: int = Field(
        5,
        ge=0,
        le=20,
        description="How often a request is sent again after a failure of the endpoint. Waiting "
        "for a limit to pass does not count.",
    )
    structured: Structured = Field(
        "auto",
        description="How a reply is held to its JSON Schema: by the endpoint (json_schema), as "
        "any JSON object with the schema in words (json_object), in words alone (prompt), or the "
        "strictest of them that it takes (auto).",
    )
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="More fields of the request's body, for example reasoning_effort.",
    )

    @field_validator("keys", mode="before")
    @classmethod
    def one_key_is_a_list_of_one(cls, keys: Any) -> Any:
        """One name may stand alone."""
        return (keys,) if isinstance(keys, str) else keys

    @model_validator(mode="after")
    def is_usable(self) -> EndpointConfig:
        """A wrong address or a key in the recipe is told before anything is sent."""
        address = urlsplit(self.base_url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ValueError("base_url must start with http:// or https:// and name a host")
        if address.username or address.password or address.query or address.fragment:
            raise ValueError(
                "base_url must hold no user, password, query or fragment; a key belongs into an "
                "environment variable that keys names"
            )
        for name in self.variables:
            if not VARIABLE.fullmatch(name):
                raise ValueError(
                    "keys takes names of environment variables (letters, digits, _), never keys"
                )
        if len(set(self.variables)) < len(self.variables):
            raise ValueError("keys names a variable twice")
        if own := sorted(OWN_FIELDS & self.extra.keys()):
            raise ValueError(f"extra may not hold {own[0]}, which Potstill sets itself")
        return self

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the environment variables."""
        return tuple(one if isinstance(one, str) else one.variable for one in self.keys)

    @property
    def limits(self) -> tuple[KeyConfig, ...]:
        """Each key with its limits in full; one without a name if no key is needed."""
        own: dict[str, int | None] = {
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrency": self.concurrency,
        }
        if not self.keys:
            return (KeyConfig.model_construct(None, variable="", **own),)
        given = [KeyConfig(variable=one) if isinstance(one, str) else one for one in self.keys]
        return tuple(
            one.model_copy(update={name: own[name] for name in own if getattr(one, name) is None})
            for one in given
        )

    @property
    def url(self) -> str:
        """Where requests are sent."""
        return self.base_url.rstrip("/") + "/chat/completions"

    def identity(self, model: str) -> str:
        """What replies depend on: address, model and what else the body says; not the keys."""
        said = json.dumps(self.extra, sort_keys=True) if self.extra else ""
        return " ".join(
            part for part in ("openai 1", self.base_url.rstrip("/"), model, self.structured, said)
            if part
        )  # fmt: skip

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (
            prompt_tokens * self.price_per_million_input
            + completion_tokens * self.price_per_million_output
        ) / 1e6

    def quote(
        self, requests: float, prompt_tokens: float, completion_tokens: float
    ) -> Mapping[str, float]:
        """What so many requests with so many tokens in all would take: tokens, money, seconds."""
        tokens = prompt_tokens + completion_tokens
        keys = self.limits
        took = [requests * REPLY_SECONDS / sum(one.concurrency or 1 for one in keys)]
        for name, amount in (("requests_per_minute", requests), ("tokens_per_minute", tokens)):
            rates = [getattr(one, name) for one in keys]
            if all(rates):
                took.append(60 * amount / sum(rates))
        return {
            "tokens": round(tokens),
            "money": self.price(prompt_tokens, completion_tokens),
            "seconds": 1 + max(took),
            "memory_bytes": 2e8,
        }


def is_endpoint(reference: str) -> bool:
    """Whether a model reference names a model behind an address."""
    return reference.startswith(PREFIX)


def only_writes(reference: str) -> bool:
    """Whether a model reference names a model that is asked for text and lends nothing else: no
    tokenizer, probabilities or weights."""
    return is_endpoint(reference) or is_plugin(reference)


def model_name(reference: str) -> str:
    """The name that the endpoint knows the model by."""
    return reference.removeprefix(PREFIX).strip()


def mismatch(reference: str, endpoint: EndpointConfig | None, backend: str) -> str | None:
    """Why a teacher's reference and an endpoint do not fit, or None."""
    if backend == "fake":
        return None
    if is_plugin(reference) and backend in ENGINES:
        return f"the backend {backend} cannot open {reference}; set backend to auto"
    if not is_endpoint(reference):
        if endpoint is None or not reference:
            return None
        return (
            f"endpoint is given, but the teacher is {reference}; name the model that the endpoint "
            f"serves: generate.teacher: {PREFIX}MODEL"
        )
    if not model_name(reference):
        return f"the teacher {PREFIX} names no model; write {PREFIX}MODEL"
    if endpoint is None:
        return (
            f"the teacher {reference} is behind an address; say which: "
            "generate.endpoint.base_url: http://127.0.0.1:8000/v1"
        )
    if backend in ENGINES:
        return f"the backend {backend} cannot ask {reference}; set backend to auto"
    return None
