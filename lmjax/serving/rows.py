"""The running batch on the device: prompts are read in pieces, their rows join it, and steps add a token to each row.

All shapes are fixed when it is made, so that no program is compiled after `warm_up`: the batch has a fixed number of
rows and columns, and prompts are read alone, in pieces of few widths. What a row computes does not depend on other
rows: a prompt is read by a program of one row, and the programs of the batch compute each row alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.adapters.model import ROWS
from lmjax.adapters.several import Several
from lmjax.inference.generate import decode
from lmjax.inference.generate.by_row import Chosen, RowSampling, RowValues
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.decode import Decoding
from lmjax.inference.generate.processors import ProcessorConfig, Processors
from lmjax.inference.generate.requests import SMALLEST, Request, bucket, columns
from lmjax.inference.generate.writing import pieces, prompt_fields
from lmjax.inference.loaded import LoadedModel, longest_row
from lmjax.model.cache import Cache
from lmjax.model.key_value import CacheType
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.memory import check_fits, device_memory, held
from lmjax.serving.config import EngineConfig
from lmjax.serving.prefixes import Prefix, Prefixes

# The most tokens of a row of a model whose positions have no limit.
_LONGEST = 2048


class Reading:
    """A prompt that is being read.

    Attributes:
        request: the prompt.
        adapter: the number of its adapter.
        known: tokens at its beginning that a kept prompt has already.
        logits: after what was read.
        cache: of what was read.
    """

    def __init__(self, rows: Rows, request: Request, adapter: int, limit: int):
        """Takes a prompt.

        Args:
            rows: the batch.
            request: the prompt.
            adapter: the number of its adapter.
            limit: the most tokens of its text.
        """
        self.request, self.adapter, self.known = request, adapter, 0
        self.logits = self.cache = None
        self._rows, prompt = rows, request.prompt
        prefix, length = rows.prefixes.find(prompt, adapter) if rows.keeps_prefixes else (None, 0)
        if prefix is not None:
            first = int(prefix.slots[length - 1]) + 1
            width = bucket(len(prompt) - length, rows.config.chunk)
            # The padding before the rest takes slots too.
            if first + width + limit <= rows.capacity:
                self.known, self.cache = length, _rewound(prefix.cache, np.int32(first))
                self._left = rows.rest(prompt, length)
                self._slots = np.append(prefix.slots[:length], first + width - np.arange(len(prompt) - length, 0, -1))
                return
        self._left = pieces(rows.loaded, [request], rows.config.chunk)
        tokens = f"{rows.loaded.config.family.predicts}tokens"
        width = sum(piece[tokens].shape[1] for piece in self._left)
        self._slots = np.arange(width - len(prompt), width)

    @property
    def done(self) -> bool:
        """Returns whether the whole prompt has been read."""
        return not self._left

    def step(self) -> None:
        """Reads the next piece; after the last one, the prompt is kept."""
        rows, piece = self._rows, self._left.pop(0)
        params, model = rows.params(np.array([self.adapter], np.int32)), rows.loaded.model
        if self.cache is None:
            kind = rows.config.cache
            self.logits, self.cache = decode.prefill(params, piece, model=model, capacity=rows.capacity, kind=kind)
        else:
            self.logits, self.cache = decode.extend(params, piece, self.cache, model=model)
        if self.done and rows.keeps_prefixes:
            rows.prefixes.keep(Prefix(self.request.prompt, self.adapter, self._slots, self.cache))


class Rows:
    """The running batch. Its methods are called by one thread, with `loaded.on_devices()` active.

    Attributes:
        loaded: the model.
        config: sizes.
        max_length: the most tokens of a prompt and its text; of an encoder-decoder, of each of the two.
        capacity: columns of a row: a prompt is padded before its first token.
        prefixes: prompts that were read lately.
        keeps_prefixes: whether the model can go on from the middle of them.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, several: Several | None = None):
        """Checks that everything fits into memory; allocates nothing.

        Args:
            loaded: the model.
            config: sizes.
            several: adapters, of which each row has one; None: the model has none.

        Raises:
            FlagError: it is too large, or the adapters cannot be given by row.
        """
        self.loaded, self.config, self._several = loaded, config, several
        limits = [longest_row(loaded.config, decoder=True), config.max_length or _LONGEST]
        if loaded.config.family.paired:
            limits.append(longest_row(loaded.config, decoder=False))
        self.max_length = min(limit for limit in limits if limit is not None)
        form = loaded.prompts
        if loaded.config.family.paired:
            self.capacity = self.max_length + len(form.start) + len(form.forced)
        elif form.bidirectional:
            self.capacity = bucket(self.max_length) + self.max_length
        else:
            self.capacity = self.max_length + max(config.chunk, SMALLEST)
        own = Processors.of(ProcessorConfig(), form)
        # What is never generated is part of the settings of each row, because it is another in conversations.
        self._processors = own.replace(banned=None)
        self._strategy = RowSampling(processors=self._processors)
        self._adapted = None if several is None else several.by_row(loaded.params, list(several.adapters)[:1])
        self._decoding: Decoding | None = None
        model = loaded.config
        # A layer with a window has overwritten the tokens before it; a prefix or a source is read as a whole.
        local = any(not model.side_attention(True).is_global(layer) for layer in range(model.side_layers(True)))
        whole = form.bidirectional or model.family.paired or (local and not model.attention.sink_tokens)
        self.keeps_prefixes = config.prefixes > 0 and not whole
        self.prefixes = Prefixes(config.prefixes)
        self._check_memory()

    @property
    def sources(self) -> int:
        """Returns the tokens of an encoder's output in the batch; 0: there is no encoder."""
        return min(bucket(self.max_length), self._longest_source) if self.loaded.config.family.paired else 0

    @property
    def _longest_source(self) -> int:
        limit = longest_row(self.loaded.config, decoder=False)
        return bucket(self.max_length) if limit is None else limit

    def params(self, adapters: np.ndarray) -> dict:
        """Returns the parameters for rows with these adapters, int32 `[rows]`."""
        return self.loaded.params if self._adapted is None else {**self._adapted, ROWS: adapters}

    def read(self, request: Request, adapter: int = 0, limit: int = 1) -> Reading:
        """Returns a prompt whose pieces are read by `Reading.step`; `limit`: the most tokens of its text."""
        return Reading(self, request, adapter, limit)

    def rest(self, prompt: Sequence[int], known: int) -> list[dict[str, np.ndarray]]:
        """Returns the pieces of a prompt after its first `known` tokens, as `writing.pieces` does."""
        chunk = self.config.chunk
        width = bucket(len(prompt) - known, chunk)
        fields = columns([prompt[known:]], width, self.loaded.tokenizer.pad_id)
        fields["positions"] = fields["positions"] + known * fields["segment_ids"]
        return [{name: x[:, start : start + chunk] for name, x in fields.items()} for start in range(0, width, chunk)]

    def begin(self, reading: Reading, values: RowValues, limit: int, allowed: np.ndarray | None = None) -> Decoding:
        """Returns a batch of one row with the first token after a prompt.

        Args:
            reading: the prompt, read.
            values: its settings.
            limit: the most tokens, forced ones included.
            allowed: bool `[vocab]`: ids that the first token may be; None: all.
        """
        request, strategy = reading.request, RowSampling(values, self._processors)
        fields = self.fields(request, limit)
        state = strategy.start([request.seed], self.capacity)
        mask = None if allowed is None else allowed[None]
        return decode.begin(reading.logits, reading.cache, state, fields, mask, strategy=self._strategy)

    def fields(self, request: Request, limit: int) -> dict[str, np.ndarray]:
        """Returns the fields of `Decoding` that a prompt has, for a text of at most `limit` tokens."""
        fields = prompt_fields(self.loaded, [request], self.config.chunk, new_columns=0, limit=limit, stop=())
        room = self.capacity - fields["tokens"].shape[1]
        return fields | {name: np.pad(fields[name], ((0, 0), (0, room))) for name in ("tokens", "written")}

    def widened(self, cache: Cache) -> Cache:
        """Returns the cache of a prompt that was read, with as many slots for an encoder's output as the longest."""
        if not self.sources:
            return cache
        return _widened(
            cache,
            model=self.loaded.model,
            capacity=self.capacity,
            memory_length=self.sources,
            kind=self.config.cache,
        )

    def join(self, row: int, text: Decoding) -> None:
        """Puts a text into a row of the batch."""
        if self._decoding is None:
            self._decoding = _repeated(text, self.config.rows)
        self._decoding = decode.join(self._decoding, text, np.int32(row), strategy=self._strategy)

    def step(self, adapters: np.ndarray, allowed: np.ndarray | None) -> None:
        """Adds a token to each text that has not ended.

        Args:
            adapters: int32 `[rows]`, the adapter of each row.
            allowed: bool `[rows, vocab]`: ids that the tokens may be; None: all.
        """
        model, params = self.loaded.model, self.params(adapters)
        self._decoding = decode.run(params, self._decoding, np.int32(1), allowed, model=model, strategy=self._strategy)

    def taken(self) -> tuple[Chosen, np.ndarray]:
        """Returns the last tokens of all rows, and bool `[rows]`: which texts have ended; waits for the step."""
        return taken(self._decoding)

    def end(self, rows: Sequence[int]) -> None:
        """Marks texts as ended."""
        ended = np.zeros(self.config.rows, bool)
        ended[list(rows)] = True
        state = self._decoding.state
        self._decoding = self._decoding.replace(state=state.replace(done=_either(state.done, ended)))

    def reset(self) -> None:
        """Makes the batch again, after an error that may have left it unusable."""
        self._decoding = None
        self.prefixes.clear()
        self.warm_up()

    def warm_up(self) -> None:
        """Runs every program once, so that none is compiled later."""
        vocab, loaded = self.loaded.config.vocab_size, self.loaded
        config = GenerateConfig(max_new_tokens=1)
        values = RowValues.of(config, vocab, stop=())
        adapters, all_ids = np.zeros(self.config.rows, np.int32), np.ones(vocab, bool)
        for request in reversed(self.warming()):
            reading = self.read(request)
            while not reading.done:
                reading.step()
            limit = len(loaded.prompts.forced) + 2
            text = self.begin(reading, values, limit)
            taken(text)
            self.join(0, text)
        taken(self.begin(reading, values, limit, all_ids))
        self._warm_prefixes()
        masks = np.ones((self.config.rows, vocab), bool)
        for mask in (None, masks):
            # Only a text that has not ended takes a step.
            self.join(0, self.begin(reading, values, limit))
            self.step(adapters, mask)
            self.taken()
        self.end([0])

    def _warm_prefixes(self) -> None:
        """Runs the programs that go on from a kept prompt, with rests of all widths."""
        longest, chunk, token = self.max_length - 1, self.config.chunk, self.loaded.tokenizer.pad_id
        begin = (token,) * min(longest - 1, SMALLEST)
        for width in sorted({bucket(1 << i, chunk) for i in range(4, chunk.bit_length() + 1)}):
            self.prefixes.clear()
            for prompt in (begin, (*begin, *(token + 1,) * min(width, longest - len(begin)))):
                reading = self.read(Request(0, 0, prompt))
                while not reading.done:
                    reading.step()
        self.prefixes.clear()

    def warming(self) -> list[Request]:
        """Returns prompts of all widths that are read, the shortest first."""
        longest, token = self.max_length - 1, self.loaded.tokenizer.pad_id
        widths = sorted({min(1 << i, longest) for i in range(4, bucket(self.max_length).bit_length())})
        if self.loaded.config.family.paired:
            prompt = (*self.loaded.prompts.start, *self.loaded.prompts.forced)
            return [Request(0, 0, prompt, (token,) * width) for width in sorted({*widths, self.max_length})]
        if not self.loaded.prompts.bidirectional:
            widths = [width for width in widths if width <= 2 * self.config.chunk]
        return [Request(0, 0, (token,) * width) for width in widths]

    def _check_memory(self) -> None:
        """Raises FlagError if parameters, cache and logits do not fit."""
        model, memory, rows = self.loaded.model, device_memory(), self.config.rows
        # One row more: the prompt that is being read. A beam search reads one too, and copies its rows at each step.
        kept = rows + 1 + (self.config.prefixes if self.keeps_prefixes else 0)
        kept += 2 * self.config.beams + (self.config.beams > 0)
        cache = jax.eval_shape(
            lambda: model.empty_cache(kept, self.capacity, memory_length=self.sources, kind=self.config.cache)
        )
        ways = 1 if memory.shared else self.loaded.mesh.size
        logits = (rows + self.config.beams) * self.loaded.config.vocab_size
        needs = {
            "parameters": held(self.loaded.params, memory),
            "keys and values": held(cache, memory) // ways,
            "logits": 2 * logits * np.dtype(np.float32).itemsize // ways,
        }
        given = f"--rows={rows}, --max_length={self.max_length}, --beams={self.config.beams}"
        check_fits(given, needs, memory, "lower one of these, or give --cache_dtype=int8")


def taken(text: Decoding) -> tuple[Chosen, np.ndarray]:
    """Returns the last tokens of a batch, and bool `[rows]`: which texts have ended, on the host."""
    return jax.device_get((text.state.chosen, text.state.done))


@functools.partial(jax.jit, static_argnames=("rows",))
def _repeated(text: Decoding, rows: int) -> Decoding:
    """Returns a batch of so many copies of a text, all of them ended."""
    order = jnp.zeros(rows, jnp.int32)
    cache = text.cache.repeat(rows)
    state = text.state
    names = ("keys", "scores", "values", "chosen")
    of_rows = jax.tree.map(lambda x: x[order], {name: getattr(state, name) for name in names})
    fields = ("tokens", "written", "positions", "column", "count", "limit")
    return text.replace(
        cache=cache.replace(filled=cache.filled_rows),
        state=state.replace(done=jnp.ones(rows, bool), **of_rows),
        **{name: jnp.take(getattr(text, name), order, axis=0) for name in fields},
    )


@functools.partial(jax.jit, static_argnames=("model", "capacity", "memory_length", "kind"))
def _widened(cache: Cache, *, model: LanguageModel, capacity: int, memory_length: int, kind: CacheType) -> Cache:
    return model.empty_cache(1, capacity, memory_length=memory_length, kind=kind).put(0, cache)


@jax.jit
def _rewound(cache: Cache, filled: jax.Array) -> Cache:
    """Returns a copy of a cache, of which only the first slots are filled."""
    return cache.rewind(filled)


@jax.jit
def _either(x: jax.Array, y: jax.Array) -> jax.Array:
    return x | y
