"""The requests that the gateway takes, field by field, as OpenAI's API names them.

In: JSON. Out: validated requests, and the body for the engine. What is not listed here is refused
by name: a field that were dropped silently would be an answer to another question.
Knows no engine but llama.cpp's extra fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

TOP_K = 128  # as the student was measured: draws are among this many likeliest tokens
MOST_MESSAGES = 1000
MOST_STOPS = 16
LONGEST_STOP = 1000
MOST_TOKENS = 1_000_000
MOST_PASSAGES = 32
# Not Literal[1] and Literal[False]: to Python True is 1 and 0 is False, to JSON they are not.
One = Annotated[int, Field(ge=1, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _not_yes(value: bool) -> bool:
    if value:
        raise ValueError("only false is supported")
    return value


No = Annotated[bool, AfterValidator(_not_yes), WithJsonSchema({"type": "boolean", "const": False})]


class Asked(BaseModel):
    """Base of all requests: unknown fields are errors, and a text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(Asked):
    """A part of a message; a student reads text alone."""

    type: Literal["text"]
    text: str


class Message(Asked):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, max_length=64)

    @property
    def text(self) -> str:
        """The words, whichever form they came in."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Asked):
    """What a stream tells beside the text."""

    include_usage: bool = False


class JsonSchema(Asked):
    """A JSON Schema that the answer follows."""

    name: str = Field("answer", max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Asked):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def has_schema(self) -> ResponseFormat:
        """A schema where one is announced, and only there."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and is needed there")
        return self

    def body(self, local: bool) -> dict[str, Any]:
        """As the engine takes it; llama.cpp holds only to a schema that says something."""
        if local and self.type == "json_object":
            schema = {"name": "answer", "schema": {"type": "object"}}
            return {"type": "json_schema", "json_schema": schema}
        return self.model_dump(by_alias=True, exclude_none=True)


class Sampling(Asked):
    """What chat and plain completions have in common."""

    model: str = Field(max_length=256)
    n: One | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: Finite | None = Field(None, ge=0, le=2, description="Default 0: greedy.")
    top_p: Finite | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    user: str | None = Field(None, max_length=256)

    @field_validator("stop")
    @classmethod
    def few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        """Each text is looked for after each token."""
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MOST_STOPS or any(not 0 < len(one) <= LONGEST_STOP for one in stops):
            raise ValueError(
                f"at most {MOST_STOPS} stop texts, each of 1 to {LONGEST_STOP} characters"
            )
        return stop

    @model_validator(mode="after")
    def options_fit(self) -> Sampling:
        """stream_options is about a stream."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampled(self, local: bool, most: int) -> dict[str, Any]:
        """The engine's body of these fields. local: llama.cpp's own fields go along. most: tokens
        of an answer where the client names no number."""
        temperature = 0.0 if self.temperature is None else self.temperature
        body: dict[str, Any] = {
            "max_tokens": self.max_tokens or most,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in ("top_p", "presence_penalty", "frequency_penalty"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if self.seed is not None:
            body["seed"] = self.seed % 2**32 if local else self.seed
        if self.stop:
            body["stop"] = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        if local:
            body |= {"top_k": TOP_K, "min_p": 0.0, "cache_prompt": True}
        return body


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def one_length(self) -> ChatRequest:
        """The new name of max_tokens, or the old one."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are one thing; give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def body(self, local: bool, most: int, messages: list[dict[str, str]]) -> dict[str, Any]:
        """For the engine, with these messages."""
        body = self.sampled(local, most) | {"messages": messages}
        if self.max_completion_tokens is not None:
            body["max_tokens"] = self.max_completion_tokens
        if self.response_format is not None and self.response_format.type != "text":
            body["response_format"] = self.response_format.body(local)
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return body


class CompletionRequest(Sampling):
    """POST /v1/completions: one text goes on, without a chat template."""

    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: No | None = None
    best_of: One | None = None

    @field_validator("prompt")
    @classmethod
    def one_prompt(cls, prompt: str | list[str]) -> str | list[str]:
        """One text, as it is or alone in a list."""
        if isinstance(prompt, list) and len(prompt) != 1:
            raise ValueError("one prompt a request; send several requests")
        return prompt

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def body(self, local: bool, most: int) -> dict[str, Any]:
        """For the engine."""
        body = self.sampled(local, most) | {"prompt": self.text}
        if self.logprobs is not None:
            body["logprobs"] = self.logprobs
        return body


class EmbeddingRequest(Asked):
    """POST /v1/embeddings."""

    model: str = Field(max_length=256)
    input: str | Annotated[list[str], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = Field(None, max_length=256)

    @property
    def texts(self) -> list[str]:
        """What is to be embedded."""
        return [self.input] if isinstance(self.input, str) else list(self.input)


class QaRequest(Asked):
    """POST /v1/qa: a question to a student that marks answers in passages."""

    question: str = Field(min_length=1, max_length=2000)
    context: str | None = Field(
        None, min_length=1, description="Where the answer is looked for; default: the documents."
    )
    model: str | None = Field(None, max_length=256)
    top_k: int | None = Field(
        None, ge=1, le=MOST_PASSAGES, description="Passages of the documents to read. Default 3."
    )
    no_answer_threshold: Finite | None = Field(
        None,
        description="How many nats likelier than the best span no answer must be to be given; "
        "default: the student's own.",
    )
    user: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def one_source(self) -> QaRequest:
        """A context is read as it is."""
        if self.context is not None and self.top_k is not None:
            raise ValueError("top_k is about the documents; leave it out beside a context")
        return self


class FeedbackRequest(Asked):
    """POST /v1/feedback: what a user thinks of an answer. At least one of the last four."""

    response: str = Field(max_length=64, description="Id of the response.")
    thumb: Literal["up", "down"] | None = None
    correction: str | None = Field(None, min_length=1, max_length=20_000)
    flag: str | None = Field(None, min_length=1, max_length=64, description="Why it is flagged.")
    comment: str | None = Field(None, min_length=1, max_length=20_000)

    @model_validator(mode="after")
    def says_something(self) -> FeedbackRequest:
        """An empty one is a mistake."""
        if not any((self.thumb, self.correction, self.flag, self.comment)):
            raise ValueError("give thumb, correction, flag or comment")
        return self
