"""Beam search: the likeliest texts rather than the likeliest next token, in groups that differ if wanted.

The scores and the rules of stopping are those of transformers 5 (`GenerationMixin._beam_search`), so that the same
weights give the same texts: a text's score is the sum of its log-probabilities over its length to the power of the
length penalty (tokens written, the stop id and forced ones included). Diverse beam search is Vijayakumar et al. 2016,
arXiv:1610.02424, section 3, with Hamming diversity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from lmjax.inference.generate.processors import Processors, apply
from lmjax.inference.generate.strategy import Choice, Moment, put_requests
from lmjax.schema import Schema

PyTree = Any


class BeamConfig(Schema):
    """How many texts are followed at once, which is the best, and when to stop."""

    beams: int = Field(4, ge=1, description="texts followed at once")
    length_penalty: float = Field(
        1.0,
        ge=-8,
        le=8,
        description="a score is a sum of log-probabilities over length to this power; more favours longer texts",
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="true: stop at as many finished texts as beams; false: when none looks likely to beat them; "
        "never: when none can beat them",
    )
    groups: int = Field(1, ge=1, description="groups of beams, each kept away from the tokens of those before it")
    diversity: float = Field(0.0, ge=0, description="taken off a token's score per beam of an earlier group on it")
    num_return: int = Field(1, ge=1, description="finished texts to return, best first")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.num_return > self.beams:
            raise ValueError(f"num_return={self.num_return} is more than beams={self.beams} can give")
        if self.beams % self.groups:
            raise ValueError(f"groups={self.groups} must divide beams={self.beams}")
        if self.groups > 1 and not self.diversity:
            raise ValueError(f"groups={self.groups} would all find the same texts; give diversity, 0.2 to 0.8 is usual")
        if self.groups == 1 and self.diversity:
            raise ValueError(f"diversity={self.diversity} lies between groups, and groups=1")
        return self


@flax.struct.dataclass
class BeamState:
    """What beam search knows between two tokens; `[requests, groups, width, ...]`, width beams to a group.

    Attributes:
        running: float32, the sum of log-probabilities of what each beam has written; minus infinity: no text.
        written: int32 `[..., room]`, what each beam has written.
        scores: float32, of finished texts, best first; minus infinity: none yet.
        ids: int32 `[..., room]`, the finished texts.
        lengths: int32, theirs.
        done: bool `[requests, groups]`: nothing can be added.
        norms: float32 `[room + 1]`: what the sum of a text of each length is divided by.
        hasty: bool scalar: a group is done with as many finished texts as beams.
        patient: bool scalar: it is not done while a text as long as may be could still have a better score.
        diversity: float32 scalar, the penalty.
        processors: what is changed before a choice.
    """

    running: jax.Array
    written: jax.Array
    scores: jax.Array
    ids: jax.Array
    lengths: jax.Array
    done: jax.Array
    norms: jax.Array
    hasty: jax.Array
    patient: jax.Array
    diversity: jax.Array
    processors: Processors


@flax.struct.dataclass
class Candidates:
    """Continuations of the beams of one group, best first; `[requests, candidates]`.

    Attributes:
        sums: float32, sums of log-probabilities.
        parents: int32, the beams that they continue, from 0 in the group.
        ids: int32, the tokens that continue them.
        ended: bool: the token ends the text, or the text is as long as may be.
    """

    sums: jax.Array
    parents: jax.Array
    ids: jax.Array
    ended: jax.Array


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """The strategy of beam search.

    Two are equal, and share a program, if the same is compiled for them; their numbers go into the state.

    Attributes:
        beams: texts followed at once.
        groups: of beams.
        num_return: texts to return.
        early_stopping: as in the config.
        length_penalty: as in the config.
        diversity: as in the config.
        processors: what is changed in log-probabilities before a choice, and so in the scores.
        form: what of the processors is compiled.
    """

    beams: int
    groups: int = 1
    num_return: int = dataclasses.field(default=1, compare=False)
    early_stopping: bool | Literal["never"] = dataclasses.field(default=False, compare=False)
    length_penalty: float = dataclasses.field(default=1.0, compare=False)
    diversity: float = dataclasses.field(default=0.0, compare=False)
    processors: Processors = dataclasses.field(default=Processors(), compare=False)
    form: PyTree = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "form", jax.tree.structure(self.processors))

    @classmethod
    def of(cls, config: BeamConfig, processors: Processors | None = None) -> Self:
        """Returns the strategy of a config."""
        return cls(**config.model_dump(), processors=processors or Processors())

    @property
    def rows(self) -> int:
        """Returns the beams of a request."""
        return self.beams

    def start(self, seeds: Sequence[int], room: int) -> BeamState:
        """Returns the state before the first choice; called outside of jit, for this is where the numbers enter."""
        beams = (len(seeds), self.groups, self.beams // self.groups)
        # The prompt stands in every beam; only one goes on from it, or all would write the same.
        first = np.where(np.arange(beams[2]) == 0, np.float32(0), np.float32(-np.inf))
        lengths = np.maximum(np.arange(room + 1, dtype=np.float64), 1)
        return BeamState(
            running=np.broadcast_to(first, beams),
            written=np.zeros((*beams, room), np.int32),
            scores=np.full(beams, -np.inf, np.float32),
            ids=np.zeros((*beams, room), np.int32),
            lengths=np.zeros(beams, np.int32),
            done=np.zeros(beams[:2], bool),
            norms=np.float32(lengths**self.length_penalty),
            hasty=np.bool_(self.early_stopping is True),
            patient=np.bool_(self.early_stopping == "never" and self.length_penalty > 0),
            diversity=np.float32(self.diversity),
            processors=self.processors,
        )

    def choose(self, moment: Moment, state: BeamState) -> Choice:
        """Returns the next token of every beam and the beam that it continues.

        A group continues its likeliest texts that have not ended; of its `width` likeliest, those that have ended join
        the finished ones, of which the `width` best are kept.
        """
        requests, groups, width, _ = state.written.shape
        vocab = moment.logits.shape[-1]
        if state.processors.any:
            logits = apply(jax.nn.log_softmax(moment.logits), moment, state.processors)
            offset = jnp.zeros(len(logits), jnp.float32)
        else:
            # The order within a row is that of its logits: no array of log-probabilities needs to be written.
            logits, offset = moment.logits, jax.nn.logsumexp(moment.logits, axis=-1)
        logits = logits.reshape(requests, groups, width, vocab)
        offset = offset.reshape(requests, groups, width)
        taken = jnp.zeros((requests, vocab), jnp.float32)
        chosen, parts = [], []
        for g in range(groups):
            penalty = state.diversity * taken if g else None
            found = _candidates(logits[:, g], offset[:, g], state.running[:, g], penalty, moment)
            # In order, those that have not ended; there are always enough, for every beam has at most all stop ids.
            place = jnp.arange(found.ids.shape[1], dtype=jnp.float32)
            kept = jax.lax.top_k(jnp.where(found.ended, -jnp.inf, -place[None]), width)[1]
            chosen.append(jax.tree.map(lambda x, kept=kept: _taken(x, kept, 1), found))
            parts.append(found)
            taken = taken.at[jnp.arange(requests)[:, None], chosen[-1].ids].add(1)
        found, kept = (jax.tree.map(lambda *x: jnp.stack(x, axis=1), *each) for each in (parts, chosen))
        state = self._advanced(state, found, kept, moment)
        first = width * jnp.arange(requests * groups).reshape(requests, groups, 1)
        return Choice(kept.ids.reshape(-1), (first + kept.parents).reshape(-1), state)

    def _advanced(self, state: BeamState, found: Candidates, kept: Candidates, moment: Moment) -> BeamState:
        """Returns the state after this choice, whose candidates were `found` and of which `kept` go on."""
        width = state.written.shape[2]
        count, limit = (_of_groups(x, state.done.shape) for x in (moment.count, moment.limit))
        length = count + 1
        best = jax.tree.map(lambda x: x[..., :width], found)
        # A sum of minus infinity, of an id that is not allowed or a beam without a text, joins as no text does.
        joins = best.ended & ~state.done[..., None]
        scores = jnp.where(joins, best.sums / state.norms[length][..., None], -jnp.inf)
        texts = _extended(state.written, best, count)
        scores, order = jax.lax.top_k(jnp.concatenate([state.scores, scores], axis=-1), width)
        ids = _taken(jnp.concatenate([state.ids, texts], axis=2), order[..., None], 2)
        lengths = jnp.concatenate([state.lengths, jnp.broadcast_to(length[..., None], joins.shape)], axis=-1)
        running = jnp.where(kept.ended, -jnp.inf, kept.sums)

        worst = scores[..., -1]
        hope = jnp.max(running, axis=-1) / state.norms[jnp.where(state.patient, limit, length)]
        done = state.done | (hope <= worst) | (state.hasty & (worst > -jnp.inf)) | (length >= limit)
        return state.replace(
            running=running,
            written=_extended(state.written, kept, count),
            scores=scores,
            ids=ids,
            lengths=_taken(lengths, order, 2),
            done=done,
        )

    def put(self, state: BeamState, other: BeamState, request: jax.Array) -> BeamState:
        """Returns the state with the requests of another one of the same room from int32 `request` on."""
        return put_requests(state, other, request, ("running", "written", "scores", "ids", "lengths", "done"))

    def finished(self, state: BeamState) -> jax.Array:
        """Returns bool `[requests]`: those all of whose groups are done."""
        return jnp.all(state.done, axis=-1)

    def results(self, state: BeamState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids `[requests, num_return, room]`, lengths and scores `[requests, num_return]`, best first.

        The ids are those written behind the prompt, a stop id included; zeros follow, and stand in the places of forced
        ids. Where fewer texts were found than asked for, the last have length 0 and score minus infinity.
        """
        scores, lengths, ids = (
            np.asarray(x).reshape(len(x), self.beams, -1) for x in (state.scores, state.lengths, state.ids)
        )
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.num_return]
        scores, lengths, ids = (np.take_along_axis(x, order, axis=1) for x in (scores, lengths, ids))
        lengths = np.where(scores > -np.inf, lengths, 0)
        return np.where(np.arange(ids.shape[2]) < lengths, ids, 0), lengths[..., 0], scores[..., 0]


def _candidates(
    logits: jax.Array, offset: jax.Array, running: jax.Array, penalty: jax.Array | None, moment: Moment
) -> Candidates:
    """Returns a group's best continuations: enough of them that, whatever ends, every beam goes on.

    Args:
        logits: `[requests, width, vocab]`.
        offset: `[requests, width]`, what turns them into log-probabilities when taken off.
        running: `[requests, width]`.
        penalty: `[requests, vocab]`, taken off where continuations are compared, and not part of their sums.
        moment: the rest of what is known.
    """
    width, vocab = logits.shape[1:]
    count = max(2, 1 + moment.stop.shape[0]) * width
    # The best of all beams are among the best of each; on a CPU this costs half of one search through all of them.
    compared, ids = jax.lax.top_k(logits if penalty is None else logits - penalty[:, None], min(count, vocab))
    plain = compared if penalty is None else _taken(logits, ids, 2)
    flat = (len(logits), -1)
    base = running[..., None] - offset[..., None]
    _, order = jax.lax.top_k((compared + base).reshape(flat), min(count, width * vocab))
    ids = _taken(ids.reshape(flat), order, 1)
    stops = jnp.any(ids[..., None] == moment.stop[None, None], axis=-1)
    count, limit = (_of_groups(x, (len(ids), 1)) for x in (moment.count, moment.limit))
    return Candidates(
        sums=_taken((plain + base).reshape(flat), order, 1),
        parents=order // compared.shape[-1],
        ids=ids,
        ended=stops | (count + 1 >= limit),
    )


def _extended(written: jax.Array, continued: Candidates, place: jax.Array) -> jax.Array:
    """Returns what the parents of candidates have written, `[requests, groups, width, room]`, and the candidates' ids.

    Args:
        written: by the beams.
        continued: the candidates.
        place: int32 `[requests, groups]`: where their ids stand.
    """
    texts = _taken(written, continued.parents[..., None], 2)
    here = jnp.arange(texts.shape[-1])[None, None, None] == place[..., None, None]
    return jnp.where(here, continued.ids[..., None], texts)


def _of_groups(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Returns int32 `[requests, groups]` of int32 `[rows]`, which is the same in all beams of a request."""
    return jnp.broadcast_to(x.reshape(shape[0], -1)[:, :1], shape)


def _taken(values: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Returns what stands at `places`, none of which lies outside."""
    return jnp.take_along_axis(values, places, axis=axis, mode="promise_in_bounds")
