"""Fields of the config.json of published models, and the number of their parameters."""

from typing import Any

from tests.interop.published import decoders, encoders, pairs

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = encoders.PUBLISHED | decoders.PUBLISHED | pairs.PUBLISHED
