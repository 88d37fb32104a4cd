"""The running batch on the device: prompts are read in pieces, their rows join it, and steps add a token to each row.

All shapes are known when it is made, so that no program is compiled after `warm_up`: the batch has a fixed number of
rows and one of a few numbers of slots, and prompts are read alone, in pieces of few widths. What a row computes does
not depend on other rows: a prompt is read by a program of one row, and the programs of the batch compute each row
alone.
"""

from __future__ import annotations

import functools
import itertools
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
from lmjax.inference.generate.requests import Request, bucket
from lmjax.inference.generate.writing import pieces, prompt_fields
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.row_lengths import longest_row
from lmjax.model.cache import Cache
from lmjax.model.key_value import CacheType
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.memory import check_fits, device_memory, held
from lmjax.serving.config import EngineConfig
from lmjax.serving.prefixes import Prefixes
from lmjax.serving.reading import Reading, narrow_pieces, rewound, widths
from lmjax.serving.slots import Slots, resized

# The most tokens of a row of a model whose positions have no limit.
_LONGEST = 2048


class Rows:
    """The running batch. Its methods are called by one thread, with `loaded.on_devices()` active.

    Attributes:
        loaded: the model.
        config: sizes.
        max_length: the most tokens of a prompt and its text; of an encoder-decoder, of each of the two.
        capacity: columns of a row: a prompt is padded before its first token.
        prefixes: prompts that were read lately.
        keeps_prefixes: whether the model can go on from the middle of them.
        slots: of the batch.
        reads_whole: whether a prompt is read in one pass.
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
            self.capacity = self.max_length + config.chunk
        own = Processors.of(ProcessorConfig(), form)
        # What is never generated is part of the settings of each row, because it is another in conversations.
        self._processors = own.replace(banned=None)
        self._strategy = RowSampling(processors=self._processors)
        self._adapted = None if several is None else several.by_row(loaded.params, list(several.adapters)[:1])
        self._decoding: Decoding | None = None
        model = loaded.config
        # A layer with a window has overwritten the tokens before it; a prefix or a source is read as a whole.
        local = any(not model.side_attention(True).is_global(layer) for layer in range(model.side_layers(True)))
        self.reads_whole = form.bidirectional or model.family.paired
        self._chunk = min(config.chunk, model.max_length) if model.scheme(True).table else config.chunk
        overwrites = local and not model.attention.sink_tokens
        self.keeps_prefixes = config.prefixes > 0 and not self.reads_whole and not overwrites
        self.prefixes = Prefixes(config.prefixes)
        self.slots = Slots(config.rows, self.capacity)
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

    def pieces(self, request: Request, known: int = 0) -> list[dict[str, np.ndarray]]:
        """Returns the fields of the passes that read a prompt after its first `known` tokens."""
        if self.reads_whole:
            return pieces(self.loaded, [request], self.config.chunk)
        return narrow_pieces(request.prompt, known, self._chunk, self.loaded.tokenizer.pad_id)

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
        mask = np.ones((1, self.loaded.config.vocab_size), bool) if allowed is None else allowed[None]
        # The cache is not looked at here; its number of slots would make further programs.
        text = decode.begin(reading.logits, None, state, fields, mask, strategy=self._strategy)
        return text.replace(cache=reading.cache)

    @functools.cached_property
    def _all_ids(self) -> jax.Array:
        """Returns bool `[rows, vocab]`, True; a step with other ids allowed is then the same program.

        It stays on the device, because a step would copy it there each time.
        """
        return jax.device_put(np.ones((self.config.rows, self.loaded.config.vocab_size), bool))

    def fields(self, request: Request, limit: int) -> dict[str, np.ndarray]:
        """Returns the fields of `Decoding` that a prompt has, for a text of at most `limit` tokens."""
        fields = prompt_fields(self.loaded, [request], self.config.chunk, new_columns=0, limit=limit, stop=())
        room = self.capacity - fields["tokens"].shape[1]
        return fields | {name: np.pad(fields[name], ((0, 0), (0, room))) for name in ("tokens", "written")}

    def widened(self, cache: Cache) -> Cache:
        """Returns the cache of a prompt that was read, with all slots, also those for an encoder's longest output."""
        if not self.sources:
            return resized(cache, self.loaded.model, self.capacity)
        return _widened(
            cache,
            model=self.loaded.model,
            capacity=self.capacity,
            memory_length=self.sources,
            kind=self.config.cache,
        )

    def join(self, row: int, text: Decoding, filled: int) -> None:
        """Puts a text, whose prompt takes so many slots, into a row of the batch."""
        self._join(row, text, self.slots.join(row, filled))

    def _join(self, row: int, text: Decoding, size: int) -> None:
        """Does the same with a batch of `size` slots."""
        text = text.replace(cache=resized(text.cache, self.loaded.model, size))
        if self._decoding is None:
            self._decoding, self.slots.now = _repeated(text, self.config.rows), size
        self._resize(size)
        self._decoding = decode.join(self._decoding, text, np.int32(row), strategy=self._strategy)

    def step(self, adapters: np.ndarray, allowed: np.ndarray | None) -> None:
        """Adds a token to each text that has not ended.

        Args:
            adapters: int32 `[rows]`, the adapter of each row.
            allowed: bool `[rows, vocab]`: ids that the tokens may be; None: all.
        """
        self._resize(self.slots.step())
        model, params = self.loaded.model, self.params(adapters)
        allowed = self._all_ids if allowed is None else allowed
        self._decoding = decode.run(params, self._decoding, np.int32(1), allowed, model=model, strategy=self._strategy)

    def _resize(self, size: int) -> None:
        if size != self.slots.now:
            cache = resized(self._decoding.cache, self.loaded.model, size, release=True)
            self._decoding, self.slots.now = self._decoding.replace(cache=cache), size

    def taken(self) -> tuple[Chosen, np.ndarray]:
        """Returns the last tokens of all rows, and bool `[rows]`: which texts have ended; waits for the step."""
        chosen, done = taken(self._decoding)
        self.slots.end(done)
        return chosen, done

    def end(self, rows: Sequence[int]) -> None:
        """Marks texts as ended."""
        ended = np.zeros(self.config.rows, bool)
        ended[list(rows)] = True
        self.slots.end(ended)
        state = self._decoding.state
        self._decoding = self._decoding.replace(state=state.replace(done=_either(state.done, ended)))

    def reset(self) -> None:
        """Makes the batch again, after an error that may have left it unusable."""
        self._decoding = None
        self.prefixes.clear()
        self.warm_up()

    def warm_up(self) -> None:
        """Runs every program once, so that none is compiled later."""
        self.slots = Slots(self.config.rows, self.capacity)
        values = RowValues.of(GenerateConfig(max_new_tokens=1), self.loaded.config.vocab_size, stop=())
        limit = len(self.loaded.prompts.forced) + 2
        texts = []
        for request in reversed(self.warming()):
            reading = self.read_now(request)
            text = self.begin(reading, values, limit)
            taken(text)
            # With an encoder, its output is as wide as the prompt; else all of them are alike.
            texts = [*texts, text] if self.loaded.config.family.paired else [text]
        if not self.reads_whole:
            self._warm_reading()
        for size in self.slots.sizes:
            # The batch gets the widest encoder's output, that of the first text.
            for text in texts:
                self._join(0, text, size)
            # Only a text that has not ended takes a step.
            self.step(np.zeros(self.config.rows, np.int32), None)
            self.taken()
        for sizes in itertools.permutations(self.slots.sizes, 2):
            for size in sizes:
                self._resize(size)
        self.end(range(self.config.rows))
        self._resize(self.slots.sizes[0])

    def _warm_reading(self) -> None:
        """Runs the programs that read a prompt in pieces, and that go on from a kept one, with all widths and sizes."""
        model, params, sizes = self.loaded.model, self.params(np.zeros(1, np.int32)), self.slots.sizes
        for width in widths(self._chunk):
            (piece,) = self.pieces(Request(0, 0, (self.loaded.tokenizer.pad_id,) * width))
            _, cache = decode.prefill(params, piece, model=model, capacity=width, kind=self.config.cache)
            grown = {size: resized(cache, model, size) for size in sizes if size > width}
            if self.keeps_prefixes:
                decode.extend(params, piece, rewound(grown[self.capacity], np.int32(width)), model=model)
        for cache in grown.values():
            kept = rewound(cache, np.int32(width))
            for size in sizes:
                resized(kept, model, size)
            decode.extend(params, piece, kept, model=model)

    def read_now(self, request: Request) -> Reading:
        """Returns a prompt, read as a whole."""
        reading = self.read(request)
        while not reading.done:
            reading.step()
        return reading

    def warming(self) -> list[Request]:
        """Returns prompts of all widths that are read, the shortest first."""
        longest, token = self.max_length - 1, self.loaded.tokenizer.pad_id
        powers = sorted({min(1 << i, longest) for i in range(4, bucket(self.max_length).bit_length())})
        if self.loaded.config.family.paired:
            prompt = (*self.loaded.prompts.start, *self.loaded.prompts.forced)
            return [Request(0, 0, prompt, (token,) * width) for width in sorted({*powers, self.max_length})]
        return [Request(0, 0, (token,) * width) for width in (powers if self.reads_whole else [longest])]

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
def _either(x: jax.Array, y: jax.Array) -> jax.Array:
    return x | y
