"""Runs a model that `lmjax convert --format=stablehlo` wrote. Needs jax, numpy and flatbuffers, and nothing else.

A copy of this file lies beside the programs:

    import portable                            # from the folder, such as with PYTHONPATH=FOLDER
    model = portable.load("FOLDER")
    model.greedy([[5, 17, 8], [5, 9]], 20)     # a decoder: lists of new ids
    model.greedy(sources, 20)                  # an encoder-decoder: the ids of the texts that its encoder reads
    model.forward(tokens=..., positions=..., segment_ids=...)     # an encoder: its outputs by name

Rows of a batch may have different lengths: padding is segment 0, every other token segment 1. Ids are those of the
tokenizer in the same folder. `greedy` applies no rules on words of several ids, which `lmjax generate` does.
"""

import json
import pathlib

import jax
import ml_dtypes  # a requirement of jax
import numpy as np
from jax import export

_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "I8": np.int8, "I32": np.int32}


def load(folder):
    """Returns the model in a folder, with its weights on the default device."""
    return Model(pathlib.Path(folder))


def read_safetensors(path):
    """Returns the arrays of a safetensors file by name: a length, a JSON header, then the numbers."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        arrays[name] = data[start + first : start + last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


class Model:
    """A model: its weights and its programs.

    Attributes:
        about: what program.json says: the names and shapes of inputs, of outputs and of the cache, and special ids.
        weights: arrays by name.
    """

    def __init__(self, folder):
        """Reads the folder."""
        self.about = json.loads((folder / "program.json").read_text())
        self.weights = jax.device_put(read_safetensors(folder / "weights.safetensors"))
        programs = {
            name: export.deserialize((folder / file).read_bytes()) for name, file in self.about["files"].items()
        }
        self._programs = {name: jax.jit(program.call) for name, program in programs.items()}

    def forward(self, *fields, **named):
        """Returns all outputs by name, for the fields that `about["inputs"]["forward"]` lists, `[batch, length]`."""
        return self._programs["forward"](self.weights, self._fields("forward", fields, named))

    def prefill(self, cache, *fields, **named):
        """Returns float32 logits `[batch, vocab]` after the last column, and the cache with the rows in it."""
        return self._programs["prefill"](self.weights, cache, self._fields("prefill", fields, named))

    def step(self, cache, *fields, **named):
        """Returns float32 logits `[batch, vocab]` after one more token `[batch, 1]`, and the cache with it."""
        return self._programs["step"](self.weights, cache, self._fields("step", fields, named))

    def empty_cache(self, batch, capacity, source=0):
        """Returns a cache for `capacity` tokens in each of `batch` rows, and `source` tokens of an encoder."""
        sizes = {"b": batch, "c": capacity, "s": source}
        made = {}
        for name, (shape, dtype) in self.about["cache"].items():
            kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
            made[name] = np.zeros([sizes.get(n, n) for n in shape], kind)
        return jax.device_put(made)

    def greedy(self, prompts, new):
        """Returns for each prompt the list of at most `new` likeliest ids; it ends at an id of `about["stop"]`.

        Args:
            prompts: lists of ids, with those that belong around a text (`about["before"]`, `about["after"]`).
            new: most new ids.
        """
        about, paired = self.about, self.about["paired"]
        rows = [about["start"] for _ in prompts] if paired else prompts
        fields, width = {}, max(map(len, rows))
        side = "decoder_" if paired else ""
        if paired:
            fields |= {f"encoder_{name}": x for name, x in _columns(prompts, about["pad"], left=False).items()}
        fields |= {f"{side}{name}": x for name, x in _columns(rows, about["pad"], left=True).items()}
        fields = {name: fields[name] for name in about["inputs"]["prefill"]}
        source = max(map(len, prompts)) if paired else 0
        logits, cache = self.prefill(self.empty_cache(len(rows), width + new, source), **fields)
        written, positions = [[] for _ in rows], np.array([[len(row)] for row in rows], np.int32)
        never = np.zeros(logits.shape[-1], np.float32)
        never[about["never"]] = -np.inf
        for number in range(new):
            forced = about["forced"][number : number + 1]
            ids = np.full(len(rows), forced[0]) if forced else np.argmax(np.asarray(logits) + never, axis=-1)
            for row, token in zip(written, ids.tolist(), strict=True):
                if not row or row[-1] not in about["stop"] or len(row) <= len(about["forced"]):
                    row.append(token)
            last = ids[:, None].astype(np.int32)
            one = {f"{side}tokens": last, f"{side}positions": positions, f"{side}segment_ids": np.ones_like(last)}
            logits, cache = self.step(cache, **one)
            positions = positions + 1
        return written

    def _fields(self, program, fields, named):
        """Returns the fields of a call by name; refuses other names than the program has."""
        given = dict(zip(self.about["inputs"][program], fields, strict=False)) | named
        if set(given) != set(self.about["inputs"][program]):
            raise ValueError(f"{program} takes {self.about['inputs'][program]}, and {sorted(given)} were given")
        return {name: np.asarray(x, np.int32) for name, x in given.items()}


def _columns(rows, pad, left):
    """Returns tokens, positions and segments `[batch, longest]` of rows of ids, padded on one side."""
    shape = len(rows), max(map(len, rows))
    tokens, positions, segments = np.full(shape, pad, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        at = slice(shape[1] - len(row), None) if left else slice(0, len(row))
        tokens[i, at], positions[i, at], segments[i, at] = row, np.arange(len(row)), 1
    return {"tokens": tokens, "positions": positions, "segment_ids": segments}
