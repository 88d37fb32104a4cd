"""The settings of serving that bound its memory and its waiting."""

from __future__ import annotations

from pydantic import Field

from lmjax.model.key_value import CacheType
from lmjax.schema import Schema


class EngineConfig(Schema):
    """Sizes of the running batch and of the queue of a model; all memory for texts is reserved at the start."""

    rows: int = Field(8, ge=1, le=1024, description="Texts that are written at once.")
    max_length: int | None = Field(
        None,
        ge=2,
        le=2**20,
        description="The most tokens of a prompt and its text, and of an encoder's text; none: what the model's rows"
        " have, and at most 2048.",
    )
    chunk: int = Field(
        128, ge=16, le=2**16, description="Tokens of a prompt that are read between two steps of the others."
    )
    queue: int = Field(
        64, ge=0, le=100_000, description="Requests that may wait; a further one is refused with status 429."
    )
    prefixes: int = Field(
        4,
        ge=0,
        le=1024,
        description="Prompts that are kept, so that one that begins alike reads only its rest; 0: off.",
    )
    beams: int = Field(
        4, ge=0, le=64, description="The most beams of a beam search, of which one runs at a time; 0: there is none."
    )
    timeout: float = Field(600.0, gt=0, le=86400, description="Seconds after which a request is ended with an error.")
    stuck_after: float = Field(
        60.0, gt=0, le=86400, description="Seconds of one step after which /health says it is stuck."
    )
    cache: CacheType = Field("compute", description="Type of cached keys and values: int8 takes one byte each.")
