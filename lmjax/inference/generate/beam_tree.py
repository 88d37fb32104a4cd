"""Beam search step by step: which continuations it kept, finished and dropped, as a tree.

The search is that of `beam.BeamSearch` with one group. One compiled program serves every number of beams up to a limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.inference.generate.beam import BeamSearch, BeamState, Candidates
from lmjax.inference.generate.strategy import ChoiceInput

Fate = Literal["kept", "ended", "dropped"]


@flax.struct.dataclass
class RecordedState(BeamState):
    """The state of a search that records its last choice.

    Attributes:
        used: int32 scalar: the beams that are used, at most as many as there are.
        found: the likeliest candidates of the last choice, two for each beam, `[requests, 1, 2 * beams]`.
        kept: the candidates that the beams continue, `[requests, 1, beams]`.
    """

    used: jax.Array
    found: Candidates
    kept: Candidates


@dataclasses.dataclass(frozen=True)
class RecordedBeams(BeamSearch):
    """Beam search with `used` of its `beams`, which finds the texts that a search with that many beams finds.

    Attributes:
        used: beams of this search.
    """

    used: int = dataclasses.field(default=1, compare=False)

    def start(self, seeds: Sequence[int], room: int) -> RecordedState:
        """Returns the state before the first choice."""
        state = super().start(seeds, room)

        def nothing(count: int) -> Candidates:
            shape = (len(seeds), 1, count)
            sums = np.full(shape, -np.inf, np.float32)
            return Candidates(sums, np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool))

        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return RecordedState(
            **fields, used=np.int32(self.used), found=nothing(2 * self.beams), kept=nothing(self.beams)
        )

    def _advanced(
        self, state: RecordedState, found: Candidates, kept: Candidates, inputs: ChoiceInput
    ) -> RecordedState:
        # The beams beyond `used` get a sum of minus infinity, so that none of their continuations is ever chosen.
        unused = jnp.arange(self.beams)[None, None] >= state.used
        kept = kept.replace(sums=jnp.where(unused | kept.ended, -jnp.inf, kept.sums))
        late = jnp.arange(found.ids.shape[-1])[None, None] >= state.used
        ending = found.replace(ended=found.ended & ~late)
        shown = jax.tree.map(lambda x: x[..., : 2 * self.beams], ending)
        return super()._advanced(state, ending, kept, inputs).replace(found=shown, kept=kept)

    def _worst(self, scores: jax.Array, state: RecordedState) -> jax.Array:
        return jnp.take(scores, state.used - 1, axis=-1)


@dataclasses.dataclass(frozen=True)
class Node:
    """A continuation that the search has compared.

    Attributes:
        parent: the number of the node that it continues; -1: it is a first token.
        token: the id.
        log_prob: of the token, in nats, after penalties and bans.
        sum: of the log-probabilities from the first token on.
        fate: kept: a beam goes on from it; ended: it is a finished text; dropped: neither.
    """

    parent: int
    token: int
    log_prob: float
    sum: float
    fate: Fate


class BeamTree:
    """The continuations of a search of one request, in the order in which they were compared.

    Attributes:
        nodes: a parent is before its children, and the likeliest of a step is first.
    """

    def __init__(self, beams: int, used: int):
        """Begins a tree for a search with `used` of `beams` beams."""
        self.nodes: list[Node] = []
        self._used, self._beams = used, [-1] * beams
        self._numbers: dict[tuple[int, int], int] = {}

    def add(self, found: Candidates, kept: Candidates) -> None:
        """Adds a choice: `found` and `kept` of a `RecordedState`, as NumPy arrays."""
        going = {(int(p), int(i)) for s, p, i in _rows(kept) if np.isfinite(s)}
        ended = {(int(p), int(i)) for (s, p, i), e in zip(_rows(found), found.ended.ravel(), strict=True) if e}
        before = list(self._beams)
        # A kept candidate may not be among the found ones that are shown, if many of those have ended.
        for place, (total, parent, token) in enumerate([*_rows(found), *_rows(kept)]):
            key, from_ = (int(parent), int(token)), before[int(parent)]
            inside = place < 2 * self._used or key in going
            if not np.isfinite(total) or not inside or (from_, key[1]) in self._numbers:
                continue
            fate: Fate = "ended" if key in ended else "kept" if key in going else "dropped"
            own = float(total) - (self.nodes[from_].sum if from_ >= 0 else 0.0)
            self._numbers[from_, key[1]] = len(self.nodes)
            self.nodes.append(Node(from_, key[1], own, float(total), fate))
        for beam, (total, parent, token) in enumerate(_rows(kept)):
            if np.isfinite(total):
                self._beams[beam] = self._numbers[before[int(parent)], int(token)]

    def last(self, ids: Sequence[int]) -> int:
        """Returns the number of the node of a text's last token; -1: the text has no token in the tree."""
        at = -1
        for token in ids:
            at = self._numbers.get((at, int(token)), -1)
            if at < 0:
                break
        return at


def _rows(found: Candidates) -> list[tuple[float, int, int]]:
    """Returns sum, parent and id of each candidate of the only request."""
    return list(zip(found.sums.ravel(), found.parents.ravel(), found.ids.ravel(), strict=True))
