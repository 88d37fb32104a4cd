"""How long the rows of a forward pass are: few different lengths, and none longer than a model allows."""

from __future__ import annotations

from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig

# The least length of the rows of a forward pass: all shorter texts share one compiled program.
_SHORTEST = 16


def row_length(tokens: int, limit: int | None = None) -> int:
    """Returns the length of a row for so many tokens: few different lengths, so that programs are compiled once.

    Args:
        tokens: the most tokens of a text in the row.
        limit: the longest row; None: there is no limit.
    """
    length = max(_SHORTEST, 1 << max(0, tokens - 1).bit_length())
    return length if limit is None else min(length, limit)


def longest_row(config: ModelConfig, *, decoder: bool) -> int | None:
    """Returns the most tokens of a row that the model's position scheme allows; None: no limit.

    Args:
        config: of the model.
        decoder: whether a decoder reads the row (also that of an encoder-decoder), not an encoder.
    """
    return config.scheme(decoder).limit(config)


def check_length(
    config: ModelConfig, prompt: int, new: int, place: str, *, decoder: bool = True, whose: str = "the model's"
) -> None:
    """Raises FlagError if a row would be longer than the model allows.

    Args:
        config: of the model.
        prompt: the number of tokens of the prompt.
        new: the most tokens that are generated after it.
        place: the name of the prompt in the error message.
        decoder: as for `longest_row`.
        whose: the name of the model in the error message.
    """
    limit = longest_row(config, decoder=decoder)
    # The model never reads the last generated token, so it needs no position.
    if limit is not None and prompt + max(new - 1, 0) > limit:
        room = limit - prompt + 1
        remedy = f"shorten it, or set --max_new_tokens to at most {room}" if new and room > 0 else "shorten it"
        and_new = f" and --max_new_tokens={new}" if new else ""
        raise FlagError(f"{place} has {prompt} tokens{and_new}, and {whose} rows have {limit}; {remedy}")
