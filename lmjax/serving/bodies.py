"""The bodies of requests: OpenAI's fields with their limits, and our own; anything else in them is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, model_validator

from lmjax.inference.generate.by_row import MOST_ALTERNATIVES
from lmjax.streams import SEEDS

# So many prompts or texts of a request, and choices of a prompt.
MOST_TEXTS, MOST_CHOICES = 256, 16
# No count is larger; arrays hold them as int32.
_MOST = 2**31 - 1

# Fields that beam search has no use for.
_NO_BEAMS = ("temperature", "stop", "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty")
_NO_BEAMS += ("no_repeat_ngram", "min_tokens", "regex", "schema_asked", "logprobs")

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]
Prompts = str | Texts | Ids | Annotated[list[Ids], Field(min_length=1, max_length=MOST_TEXTS)]


class Body(pydantic.BaseModel):
    """A body. Numbers must be finite, types are not converted, and unknown fields are errors."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, protected_namespaces=()
    )

    model: str | None = Field(None, description="The name of a model; it may be left out if there is only one.")
    user: str | None = Field(None, max_length=256, description="Who asks; users are served in turn.")


class StreamOptions(pydantic.BaseModel):
    """What a stream holds besides the text."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", strict=True)

    include_usage: bool = False


class Written(Body):
    """What all requests for generated text have in common."""

    max_tokens: int | None = Field(None, ge=1, le=_MOST)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]
        | None
    ) = None
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    # Accepted because clients send them; they change nothing here.
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    # Our own.
    top_k: int | None = Field(None, ge=1, le=_MOST)
    min_p: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-6, le=1e6)
    no_repeat_ngram: int | None = Field(None, ge=0, le=64)
    min_tokens: int | None = Field(None, ge=0, le=_MOST)
    regex: str | None = Field(None, max_length=10_000)
    json_schema: dict[str, Any] | None = None
    timeout: float | None = Field(None, gt=0, le=86400)
    beams: int | None = Field(None, ge=1, le=64, description="Beam search; `n` is the number of its texts.")
    length_penalty: float | None = Field(None, ge=-8, le=8)
    early_stopping: bool | Literal["never"] | None = None

    @model_validator(mode="after")
    def _fits_beams(self) -> Self:
        """Raises ValueError for a field that has no effect, or none on beam search."""
        if self.beams is None:
            if alone := [name for name in ("length_penalty", "early_stopping") if getattr(self, name) is not None]:
                raise ValueError(f"{alone[0]}: is for beam search; give beams, or leave it out")
            return self
        if (self.n or 1) > self.beams:
            raise ValueError(f"n: {self.n} is more than beams={self.beams} can give")
        given = {name: getattr(self, name, None) for name in _NO_BEAMS}
        # `logprobs` is a number, which may be 0, in one endpoint, and a truth value in the other.
        given["logprobs"] = self.alternatives is not None
        if clash := [name for name, value in given.items() if value not in (None, 0, False, [])]:
            raise ValueError(f"{clash[0]}: cannot be combined with beams; leave one out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Returns the strings that end a text."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def most(self) -> int | None:
        """Returns the most tokens of a text; None: not given."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Returns the likeliest tokens that are reported with each token; None: no probabilities are."""
        return None

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        """Returns the JSON schema of the text; None: it has none."""
        return self.json_schema


class CompletionBody(Written):
    """A body of /v1/completions."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.suffix:
            raise ValueError("suffix: is not supported; leave it out")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: is not supported, unless it is n; leave it out")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: is not supported together with logprobs; the endpoint /score scores texts")
        return self

    @property
    def alternatives(self) -> int | None:
        """Returns the likeliest tokens that are reported with each token; None: no probabilities are."""
        return self.logprobs


class Part(pydantic.BaseModel):
    """A part of the content of a message."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class MessageBody(pydantic.BaseModel):
    """A message of a conversation."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    def given(self) -> dict[str, Any]:
        """Returns the message for a chat template."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content or ""}
        more = {"name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        return found | {name: value for name, value in more.items() if value is not None}


class SchemaOfName(pydantic.BaseModel):
    """A JSON schema and its name."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(pydantic.BaseModel):
    """The form of an answer."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaOfName | None = None


class ChatBody(Written):
    """A body of /v1/chat/completions."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=4096)]
    max_completion_tokens: int | None = Field(None, ge=1, le=_MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        form = self.response_format
        if form and form.type == "json_schema" and (form.json_schema is None or form.json_schema.schema_ is None):
            raise ValueError("response_format.json_schema.schema: is missing; give the schema")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs=true")
        return self

    @property
    def most(self) -> int | None:
        """Returns the most tokens of a text; None: not given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Returns the likeliest tokens that are reported with each token; None: no probabilities are."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        """Returns the JSON schema of the text; None: it has none."""
        form = self.response_format
        if form is None or form.type == "text":
            return self.json_schema
        return {"type": "object"} if form.type == "json_object" else form.json_schema.schema_


class BeamsBody(Body):
    """A body of /beams: a text that is continued, or a conversation that is answered."""

    prompt: str | Ids | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=4096)] | None = None
    beams: int | None = Field(None, ge=1, le=64, description="By default 4, or the most of the server.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Texts, the best first; by default all.")
    max_tokens: int = Field(32, ge=1, le=512)
    length_penalty: float | None = Field(None, ge=-8, le=8)
    early_stopping: bool | Literal["never"] | None = None
    timeout: float | None = Field(None, gt=0, le=86400)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self

    def settings(self, most: int) -> Written:
        """Returns the settings of the search on a server with at most so many beams; raises ValidationError."""
        beams = self.beams or max(1, min(4, most))
        given = {
            name: getattr(self, name) for name in ("max_tokens", "length_penalty", "early_stopping", "timeout", "user")
        }
        return Written(**given, beams=beams, n=self.n or min(beams, MOST_CHOICES))


class AttentionBody(Body):
    """A body of /attention."""

    text: Annotated[str, Field(min_length=1)]
    target: str | None = Field(
        None, min_length=1, description="What the decoder of an encoder-decoder reads; else what it writes."
    )


class EmbeddingBody(Body):
    """A body of /v1/embeddings."""

    input: str | Texts
    dimensions: int | None = Field(None, ge=1, le=_MOST)
    encoding_format: Literal["float", "base64"] = "float"


class TokenizeBody(Body):
    """A body of /tokenize: a text as it stands, or a conversation as the model reads it."""

    text: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("text: give either text or messages")
        return self


class DetokenizeBody(Body):
    """A body of /detokenize."""

    tokens: list[Annotated[int, Field(ge=0)]]


class ScoreBody(Body):
    """A body of /score: log-likelihoods of texts, or of texts after contexts."""

    texts: Texts
    contexts: Texts | None = None

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if self.contexts is not None and len(self.contexts) != len(self.texts):
            raise ValueError(f"contexts: there are {len(self.contexts)} for {len(self.texts)} texts; give one for each")
        return self


class MaskBody(Body):
    """A body of /fill-mask."""

    texts: Texts
    top_k: int = Field(5, ge=1, le=1000)


class Pair(pydantic.BaseModel):
    """Two texts that are classified together."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str
    text_pair: str


class ClassifyBody(Body):
    """A body of /classify."""

    texts: Annotated[list[str | Pair], Field(min_length=1, max_length=MOST_TEXTS)]


class TranslateBody(Body):
    """A body of /translate."""

    texts: Texts
    max_tokens: int | None = Field(None, ge=1, le=_MOST)
    beams: int | None = Field(None, ge=1, le=64)
