"""From prompts to the arrays of a batch: checks before anything is compiled, and batch shapes that prompts share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lmjax.data.chat import ChatTemplate
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, PromptFormat
from lmjax.inference.row_lengths import check_length, longest_row
from lmjax.inference.texts import Text, is_conversation
from lmjax.model.cache import CacheType
from lmjax.model.config import ModelConfig
from lmjax.parallel.memory import check_fits, device_memory, held

# The least number of columns of a compiled program; shorter prompts and shorter answers share it.
SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """One text to be generated.

    Attributes:
        index: of its prompt.
        seed: of its random draws.
        prompt: ids that the decoder begins with.
        source: ids that the encoder reads; empty: there is no encoder.
    """

    index: int
    seed: int
    prompt: tuple[int, ...]
    source: tuple[int, ...] = ()


def answering(loaded: LoadedModel, prompts: Sequence[Text]) -> LoadedModel:
    """Returns the model, and with conversations one that answers them; raises FlagError if others are not."""
    if not any(map(is_conversation, prompts)) or loaded.prompts.chat:
        return loaded
    if odd := [prompt for prompt in prompts if not is_conversation(prompt)]:
        raise FlagError(f"prompts: {str(odd[0])[:80]!r} is no conversation, and others are; give them apart")
    return chatting(loaded)


def chatting(loaded: LoadedModel) -> LoadedModel:
    """Returns the same model, for which a text is a message that it answers in its tokenizer's chat template.

    What it writes ends with the stop token of the template too.

    Raises:
        FlagError: the tokenizer has no chat template.
    """
    if loaded.prompts.chat:
        return loaded
    if not loaded.tokenizer.chat_template:
        raise FlagError(
            "this model's tokenizer has no chat template; train one with --objective=chat, or give a prompt as a text"
        )
    template, form = ChatTemplate.of(loaded.tokenizer), loaded.prompts
    stop = tuple(dict.fromkeys((*form.stop, *template.stop)))
    never = tuple(i for i in form.never if i not in template.written)
    return dataclasses.replace(loaded, prompts=dataclasses.replace(form, chat=True, stop=stop, never=never))


def make_requests(
    loaded: LoadedModel,
    prompts: Sequence[Text],
    seeds: Sequence[int],
    max_new_tokens: int,
    names: Sequence[str],
    *,
    rolling: bool = False,
) -> list[Request]:
    """Returns a request for each prompt; raises FlagError for a prompt that the model cannot continue.

    Args:
        loaded: the model.
        prompts: texts, which are encoded with the ids that the prompt format adds; or ids, which are used as they are.
        seeds: one for each.
        max_new_tokens: the most tokens that are generated for each.
        names: the names of the prompts in error messages.
        rolling: whether prompts and texts may have any length, because only the last tokens are kept.
    """
    config, form = loaded.config, loaded.prompts
    if not config.family.causal:
        raise FlagError(
            "this model is an encoder, which generates no text unless it was trained on masked diffusion; it can fill"
            " masks: fill_mask, or [MASK] in --prompt"
        )
    loaded.check_vocabulary()
    both = config.family.paired
    if both:
        _check_answer(config, form, max_new_tokens)
    requests = []
    for index, (prompt, seed, place) in enumerate(zip(prompts, seeds, names, strict=True)):
        ids = loaded.ids(prompt, place)
        if both:
            check_length(config, len(ids), 0, place, decoder=False)
            requests.append(Request(index, seed, (*form.start, *form.forced), ids))
        else:
            if not rolling:
                check_length(config, len(ids), max_new_tokens, place)
            requests.append(Request(index, seed, ids))
    return requests


def check_memory(
    loaded: LoadedModel, requests: Sequence[Request], batch_size: int, beams: int, new: int, kind: CacheType
) -> None:
    """Raises FlagError if a batch's keys, values and logits do not fit into the memory that the parameters leave.

    Args:
        loaded: the model.
        requests: at least one.
        batch_size: requests in a batch.
        beams: rows for each request.
        new: the most tokens that are generated for each prompt.
        kind: of the cache.
    """
    memory = device_memory()
    rows = min(batch_size, len(requests)) * beams
    prompt, source = max(len(r.prompt) for r in requests), max(len(r.source) for r in requests)
    cache = jax.eval_shape(lambda: loaded.model.empty_cache(rows, prompt + new, memory_length=source, kind=kind))
    # Heads and vocabulary are sharded over the devices of the model.
    ways = 1 if memory.shared else loaded.mesh.size
    needs = {
        "parameters": held(loaded.params, memory),
        "keys and values": held(cache, memory) // ways,
        "logits": rows * loaded.config.vocab_size * np.dtype(np.float32).itemsize // ways,
    }
    given = f"--beams={beams}, " * (beams > 1) + f"--batch_size={batch_size}, --max_new_tokens={new}"
    check_fits(given, needs, memory, "lower one of these, or give --cache_dtype=int8")


def _check_answer(config: ModelConfig, form: PromptFormat, new: int) -> None:
    """Raises FlagError if an encoder-decoder's decoder cannot generate `new` tokens, or only its forced ones."""
    limit, forced = longest_row(config, decoder=True), len(form.forced)
    if new <= forced:
        raise FlagError(
            f"--max_new_tokens={new}: the first {forced} tokens of this model are always the same; set at least"
            f" {forced + 1}"
        )
    # The decoder never reads the last generated token, so it needs no position.
    if limit is not None and len(form.start) + new - 1 > limit:
        room = limit - len(form.start) + 1
        raise FlagError(f"--max_new_tokens={new}: this model's decoder writes at most {room}; set that or less")


def bucket(length: int, chunk: int | None = None) -> int:
    """Returns the number of columns of the compiled program: a power of two, or beyond `chunk` a multiple of it."""
    if chunk is not None and length > chunk:
        return -(-length // chunk) * chunk
    size = max(SMALLEST, 1 << (length - 1).bit_length())
    return size if chunk is None else min(size, chunk)


def batches(requests: Sequence[Request], batch_size: int) -> Iterator[list[Request]]:
    """Yields requests in batches of similar lengths, longest first, so that running out of memory shows at once."""
    order = sorted(requests, key=lambda r: (-len(r.prompt), -len(r.source), r.index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def columns(rows: Sequence[Sequence[int]], width: int, pad: int) -> dict[str, np.ndarray]:
    """Returns `tokens`, `positions` and `segment_ids`, int32 `[rows, width]`, of right-aligned rows."""
    tokens = np.full((len(rows), width), pad, np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for i, row in enumerate(rows):
        start = width - len(row)
        tokens[i, start:], positions[i, start:], segments[i, start:] = row, np.arange(len(row)), 1
    return {"tokens": tokens, "positions": positions, "segment_ids": segments}
