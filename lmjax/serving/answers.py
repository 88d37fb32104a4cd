"""Answers in the form of OpenAI's API: choices, parts of streams, log-probabilities, usage."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.data.vocabulary import Vocabulary
from lmjax.inference.generate.text import Generation
from lmjax.serving.ticket import Token

# What stands for the log-probability of an id that a constraint or a ban excludes, since JSON has no infinity.
_LOWEST = -9999.0
# How models such as Qwen and Hermes write a call of a function.
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def spelled(tokenizer: Vocabulary, token: int) -> tuple[str, list[int]]:
    """Returns the text and the bytes of an id; special ids have their own names."""
    if not 0 <= token < tokenizer.vocab_size:
        return "", []
    piece = tokenizer.pieces[token]
    if not piece and token in tokenizer.special_ids:
        names = {i: text for text, i in tokenizer.special_texts.items()}
        piece = names.get(token, "").encode()
    return piece.decode(errors="replace"), list(piece)


def finite(value: float) -> float:
    """Returns a log-probability or a score, of which minus infinity is a very low number."""
    return value if math.isfinite(value) else _LOWEST


def chat_logprobs(tokenizer: Vocabulary, tokens: Sequence[Token]) -> dict[str, Any]:
    """Returns the log-probabilities of tokens as /v1/chat/completions gives them."""

    def entry(token: int, log_prob: float) -> dict[str, Any]:
        text, raw = spelled(tokenizer, token)
        return {"token": text, "logprob": finite(log_prob), "bytes": raw}

    content = [
        entry(each.id, each.log_prob) | {"top_logprobs": [entry(*other) for other in each.alternatives]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Vocabulary, tokens: Sequence[Token], start: int = 0) -> dict[str, Any]:
    """Returns the log-probabilities of tokens as /v1/completions gives them; `start`: characters before them."""
    offsets, at = [], start
    for each in tokens:
        offsets.append(at)
        at += len(each.text)
    return {
        "tokens": [spelled(tokenizer, each.id)[0] for each in tokens],
        "token_logprobs": [finite(each.log_prob) for each in tokens],
        "top_logprobs": [
            {spelled(tokenizer, i)[0]: finite(log_prob) for i, log_prob in each.alternatives} for each in tokens
        ],
        "text_offset": offsets,
    }


def usage(prompt: int, generations: Sequence[Generation]) -> dict[str, int]:
    """Returns how many tokens a request has read and written."""
    written = sum(len(each.ids) for each in generations)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def finish_reason(generation: Generation) -> str:
    """Returns why a text ended, by OpenAI's names."""
    return "length" if generation.finished == "length" else "stop"


def tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Returns a text without the calls of functions in it, and the calls."""
    calls = []
    for found in _CALL.finditer(text):
        try:
            call = json.loads(found[1])
        except (ValueError, RecursionError):
            return text, []
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            return text, []
        function = {"name": call["name"], "arguments": json.dumps(call.get("arguments", {}), ensure_ascii=False)}
        calls.append({"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function})
    return (_CALL.sub("", text).strip() if calls else text), calls
