"""Vectors: the hidden states of tokens, and similarities of sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmjax.errors import FlagError
from lmjax.inference.embed import embed
from lmjax.pipelines.base import Pipeline, check_texts


class FeatureExtraction(Pipeline):
    """The final hidden state of each token of a text, special tokens included."""

    def check(self) -> None:
        """Raises FlagError for an encoder-decoder, whose tokens have two states."""
        if self.loaded.config.family.paired:
            raise FlagError(
                f"feature-extraction: this is an {self.loaded.config.family.label}; take an encoder or decoder"
            )

    def results(self, inputs: list[str], *, return_tensors: bool = False) -> list[Any]:
        """Returns for each text `[1, tokens, embed]` as nested lists, or as a float32 array with `return_tensors`."""
        check_texts(inputs)
        rows = [self.loaded.encode(text) for text in inputs]
        states = [
            output.hidden[i : i + 1, : len(row)] for row, (output, i) in zip(rows, self.outputs(rows), strict=True)
        ]
        return [np.asarray(x, np.float32) if return_tensors else np.asarray(x, np.float32).tolist() for x in states]


class SentenceSimilarity(Pipeline):
    """The cosine of a sentence with each of several others."""

    def check(self) -> None:
        """Raises FlagError unless the model gives vectors of texts."""
        embed(self.loaded, [])

    def results(self, inputs: list[Mapping[str, Any]]) -> list[list[float]]:
        """Returns for each {"source_sentence", "sentences"} the similarity of each sentence, from -1 to 1."""
        found = []
        for i, given in enumerate(inputs):
            if not isinstance(given, Mapping) or not {"source_sentence", "sentences"} <= set(given):
                raise FlagError(f"inputs[{i}]: {str(given)[:80]!r}; give {{'source_sentence', 'sentences'}}")
            texts = [given["source_sentence"], *given["sentences"]]
            check_texts(texts)
            vectors = embed(self.loaded, texts, batch_size=self.size(len(texts))).astype(np.float64)
            lengths = np.maximum(np.linalg.norm(vectors, axis=-1), 1e-12)
            found.append((vectors[1:] @ vectors[0] / (lengths[1:] * lengths[0])).tolist())
        return found
