"""Knowledge distillation: a loss that draws the predictions of a model towards those of a trained one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from pydantic import Field

from lmjax.data.taught import IDS, LOG_PROBS, SUFFIX
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.intercept import recording
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.base import Batch, Objective
from lmjax.objectives.divergences import Measure, recorded_divergence
from lmjax.objectives.sums import LossSum
from lmjax.objectives.task import Task
from lmjax.objectives.token_prediction import TokenPrediction
from lmjax.schema import Schema
from lmjax.training.forward import ModelForward, evaluation_forward
from lmjax.training.matching import ATTENTION, HIDDEN, Pair, attention, matched, pairs, tokens

PyTree = Any


class TeacherConfig(Schema):
    """A trained model whose predictions are learned beside the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    place: str = Field(
        "", description="a workdir or Hugging Face folder with the teacher, or a file of lmjax teach; empty: none"
    )
    weight: float = Field(0.5, ge=0, description="factor on the divergence from the teacher's predictions")
    hard_weight: float = Field(0.5, ge=0, description="factor on the losses of the labels beside a teacher")
    temperature: float = Field(2.0, gt=0, description="by which the logits of both models are divided")
    kind: Literal["forward", "reverse", "js"] = Field(
        "forward",
        description="forward: KL(teacher || student), as Hinton; reverse: KL(student || teacher), which keeps to the"
        " teacher's main answers; js: the mean of both from their mean",
    )

    hidden_weight: float = Field(
        0.0, ge=0, description="factor on the squared error of hidden states, layer by layer (TinyBERT); 0: none"
    )
    attention_weight: float = Field(
        0.0, ge=0, description="factor on the divergence of attention probabilities, layer by layer; 0: none"
    )
    layers: tuple[int, ...] = Field(
        (),
        description="the teacher's layer, from 0, that each layer of the student matches, with hidden_weight or"
        " attention_weight; empty: spread evenly, the last with the last",
    )

    @property
    def matches(self) -> bool:
        """Whether layers are matched."""
        return bool(self.hidden_weight or self.attention_weight)

    @property
    def recorded(self) -> bool:
        """Whether the teacher's predictions are read from a file."""
        return self.place.endswith(SUFFIX)

    def taught(self, objectives: Sequence[Objective | type[Objective]]) -> tuple[str, ...]:
        """Returns the names of the objectives that learn from the teacher; empty without a teacher."""
        return tuple(o.name for o in objectives if o.diverges()) if self.place else ()

    def check(self, objectives: Sequence[type[Objective]], model: ModelConfig) -> None:
        """Raises FlagError if the objectives or the model cannot learn from a teacher, or nothing would be learned."""
        if not self.place:
            return
        if self.matches and (self.recorded or model.scan_layers or model.remat != "none"):
            raise FlagError(
                f"--config.teacher.hidden_weight={self.hidden_weight} and attention_weight={self.attention_weight}: "
                "layers are matched with a teacher in memory, and need --config.model.scan_layers=false and "
                "--config.model.remat=none"
            )
        if self.layers and (not self.matches or len(self.layers) != model.num_layers):
            raise FlagError(
                f"--config.teacher.layers={','.join(map(str, self.layers))}: needs hidden_weight or attention_weight, "
                f"and a layer for each of the student's {model.num_layers}"
            )
        if not self.taught(objectives):
            names = ",".join(o.name for o in objectives)
            raise FlagError(
                f"--config.teacher.place={self.place}: --objective={names} has no predictions to compare with a "
                "teacher's; leave the teacher out, or take another objective"
            )
        if self.recorded and (len(objectives) > 1 or not issubclass(objectives[0], TokenPrediction)):
            raise FlagError(
                f"--config.teacher.place={self.place}: a file has predictions of tokens for a single objective; name "
                "the teacher itself, or one objective that predicts tokens"
            )
        if not (self.weight or self.hard_weight or self.matches):
            raise FlagError("--config.teacher.weight=0 and --config.teacher.hard_weight=0: nothing is learned")

    def weighted(self, weights: Mapping[str, float], objectives: Sequence[type[Objective]]) -> dict[str, float]:
        """Returns the weight of each loss sum, those of the teacher included.

        Args:
            weights: those of the objectives without a teacher.
            objectives: the objectives.
        """
        own, taught = dict(weights), self.taught(objectives)
        own |= {name: self.hard_weight * own[name] for name in taught}
        matching = {HIDDEN: self.hidden_weight, ATTENTION: self.attention_weight} if self.place else {}
        own |= {name: weight for name, weight in matching.items() if weight}
        return own | {loss_name(name): self.weight * weights[name] for name in taught}


def loss_name(objective: str) -> str:
    """Returns the name of the loss by which an objective learns from a teacher."""
    return f"{objective}_teacher"


class Recorded(struct.PyTreeNode):
    """A teacher whose predictions are in the batch, as a file has them (`lmjax.data.taught`).

    Attributes:
        config: how it teaches.
        rows: of the token table over which its probabilities sum to 1; others are padding.
    """

    config: TeacherConfig = struct.field(pytree_node=False)
    rows: int = struct.field(pytree_node=False)

    def weights(self, task: Task, student: ModelConfig, batch: Batch) -> dict[str, jax.Array]:
        """Returns by name the total weight of each of its losses over a batch."""
        del student
        return {loss_name(name): weight for name, weight in task.weights(batch).items()}

    def watching(self, student: ModelConfig) -> contextlib.AbstractContextManager[dict[str, jax.Array]]:
        """Returns a context in which nothing of the student is recorded."""
        del student
        return contextlib.nullcontext({})

    def losses(
        self, task: Task, student: ModelForward, batch: Batch, seen: Mapping[str, jax.Array]
    ) -> dict[str, LossSum]:
        """Returns by name the divergences of the student's predictions from the recorded ones; as of `Teacher`."""
        del seen
        (objective,) = task.objectives
        apart = recorded_divergence(
            objective.predicting(student.hidden, batch),
            lambda hidden: student.logits(hidden)[..., : self.rows],
            (batch[IDS], batch[LOG_PROBS]),
            batch["weights"],
            chunk=objective.vocab_chunk,
            measure=Measure(self.config.kind, self.config.temperature),
        )
        weight, zero = task.weights(batch)[objective.name], jnp.zeros((), jnp.float32)
        return {loss_name(objective.name): LossSum(apart, weight, None, zero)}


class Teacher(struct.PyTreeNode):
    """A teacher: its parameters are arrays that a step reads and never changes, and the rest is part of its program.

    Attributes:
        params: the teacher's parameters; no gradient, no optimizer state and no checkpoint has them.
        config: how it teaches.
        model: the teacher.
    """

    params: PyTree
    config: TeacherConfig = struct.field(pytree_node=False)
    model: LanguageModel = struct.field(pytree_node=False)

    def weights(self, task: Task, student: ModelConfig, batch: Batch) -> dict[str, jax.Array]:
        """Returns by name the total weight of each of its losses over a batch, for a student of this config."""
        weights, taught = task.weights(batch), self.config.taught(task.objectives)
        found = {loss_name(name): weights[name] for name in taught}
        if self.config.matches:
            found |= dict.fromkeys((HIDDEN, ATTENTION), tokens(self._pairs(student), batch))
        return found

    def _pairs(self, student: ModelConfig) -> list[Pair]:
        return pairs(student, self.model.config, self.config.layers) if self.config.matches else []

    def _names(self, layers: Sequence[str]) -> list[str]:
        """Returns the names of the activations of these layers that are matched."""
        hidden = list(layers) if self.config.hidden_weight else []
        return hidden + ([attention(layer) for layer in layers] if self.config.attention_weight else [])

    def watching(self, student: ModelConfig) -> contextlib.AbstractContextManager[dict[str, jax.Array]]:
        """Returns a context in which the student's activations that are matched are recorded by name."""
        names = self._names([pair.student for pair in self._pairs(student)])
        return recording(names) if names else contextlib.nullcontext({})

    def losses(
        self, task: Task, student: ModelForward, batch: Batch, seen: Mapping[str, jax.Array]
    ) -> dict[str, LossSum]:
        """Returns by name the divergences of the student's predictions from its own, summed like the losses.

        Args:
            task: the objectives.
            student: the student's pass over the batch, with dropout.
            batch: the batch, which the teacher reads without dropout.
            seen: the student's recorded activations.
        """
        found = self._pairs(student.model.config)
        teacher = evaluation_forward(self.model, self.params, batch)
        with recording(self._names([pair.teacher for pair in found])) as theirs:
            _ = teacher.hidden
        measure = Measure(self.config.kind, self.config.temperature)
        apart, weights = task.divergences(student, teacher, batch, measure), task.weights(batch)
        zero = jnp.zeros((), jnp.float32)
        sums = {loss_name(name): LossSum(x, weights[name], None, zero) for name, x in apart.items()}
        return sums | (matched(found, seen, theirs, batch) if found else {})
