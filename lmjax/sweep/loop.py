"""The loop over the steps of a population."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from lmjax.axes import POPULATION
from lmjax.config import Config
from lmjax.errors import PreemptedError
from lmjax.parallel.peak import peak_flops_together
from lmjax.parallel.watchdog import Watchdog
from lmjax.phases import phase
from lmjax.runs.measured import write_figures
from lmjax.sweep.member import Member
from lmjax.sweep.outcome import last_evaluation, lines_of
from lmjax.training.evaluate import Evaluator
from lmjax.training.loop import Clock, training_line
from lmjax.training.metrics import Timers, computed
from lmjax.training.population import Own, Stacker
from lmjax.training.preemption import StopRequest
from lmjax.training.stages import Course, OpenStage
from lmjax.training.state import TrainState, read_tokens

PyTree = Any

# Of stacked states; a function of the module, so that it is traced once for each number of members.
_evaluation_params = jax.jit(jax.vmap(TrainState.evaluation_params))


@dataclasses.dataclass(frozen=True)
class Rung:
    """A step at which only the best members continue (successive halving: Jamieson and Talwalkar 2016, section 3).

    Attributes:
        step: the step, at which all members are evaluated and saved.
        keep: the share of the members that continue, rounded up.
    """

    step: int
    keep: float = 0.5


@dataclasses.dataclass
class Population:
    """The loop over the steps of a population.

    Attributes:
        members: the members, ended ones too.
        hparams: the traced hyperparameters of every member.
        states: the state of every member at the beginning; emptied when they are stacked.
        stacker: stacks states.
        course: the stages; the `step` of each is a function from a number of members to the compiled step.
        shared: evaluates all members at once.
        stop: records requests to stop.
        watchdog: ends the process if the run hangs.
        timers: time by purpose.
        progress: whether to show a progress bar.
        rungs: the steps at which the worse members stop.
        everyone: the workdirs of all runs of the population, of those that ended before too.
    """

    members: list[Member]
    hparams: list[PyTree]
    states: list[TrainState]
    stacker: Stacker
    course: Course
    shared: Evaluator
    stop: StopRequest
    watchdog: Watchdog
    timers: Timers
    progress: bool
    rungs: Sequence[Rung] = ()
    everyone: Sequence[pathlib.Path] = ()
    _slots: list[Member | None] = dataclasses.field(default_factory=list)
    _stack: Any = None
    _numbers: Any = None

    def train(self) -> None:
        """Trains all members to their end."""
        config = self._config
        number = min(member.start for member in self.members)
        self._place([*zip(self.members, self.states, strict=True)])
        self.states.clear()
        if number < config.steps:
            # The first step is compiled before the runs count as begun, so that an error in it leaves no workdirs.
            self._stage(number)
        for member in self.members:
            member.claim.begun()
        pending, self._clock = None, Clock(number, self.timers, peak_flops_together())
        with tqdm(total=config.steps, initial=number, unit="step", disable=not self.progress) as self._bar:
            self._evaluate(number)
            self._end_some(number)
            while number < config.steps and (any(m.ending is None for m in self.members)):
                stage = self._stage(number)
                number += 1
                for member in self.members:
                    member.checkpoints.check()
                self.watchdog.report(f"step {number}")
                with self.timers.time("input"):
                    (call,) = stage.read()
                own = Own(self._stack, self._numbers, self._frozen(number))
                self._stack, metrics = stage.step(len(self._slots))(own, call)
                if pending is not None:
                    self._report(*pending)
                # The slots too, because members may move to other slots before this is read.
                pending = number, metrics, stage.flops_per_step, self._moving(number)
                stopping = self.stop.stop_at(number)
                evaluating = self._due(number, config.evaluation.every) and not stopping
                saving = self._due(number, config.checkpoint.every) or stopping
                # A step that has ended already, as on a CPU, is read at once, so that its time counts as its own.
                if evaluating or saving or computed(metrics):
                    self._report(*pending)
                    pending = None
                if evaluating:
                    self._evaluate(number)
                if saving or any(member.stopping.reached for member in self.members):
                    self._save(number)
                self._end_some(number)
                if stopping:
                    self._wait()
                    raise PreemptedError(f"stopped at step {number} of {config.steps}, saved; run the command again")
        self._wait()

    @property
    def _config(self) -> Config:
        """A member's config; what the loop reads of it is the same in all."""
        return self.members[0].run.config

    @property
    def _mesh(self) -> jax.sharding.Mesh:
        return self.members[0].run.mesh

    def _needed(self, members: int) -> int:
        """Returns the slots that hold so many members: a multiple of the parts of the mesh."""
        parts = self._mesh.shape[POPULATION]
        return -(-members // parts) * parts

    def _due(self, number: int, every: int) -> bool:
        last = number == self._config.steps
        return last or (every > 0 and number % every == 0) or any(rung.step == number for rung in self.rungs)

    def _stage(self, number: int) -> OpenStage:
        stage = self.course.at(number)
        # Compiles the step for so many members.
        stage.step(len(self._slots))
        return stage

    def _place(self, members: list[tuple[Member, TrainState]]) -> None:
        """Stacks members in as many slots as the devices need; the slots left over hold a frozen copy."""
        spare = self._needed(len(members)) - len(members)
        self._slots = [*(member for member, _ in members), *itertools.repeat(None, spare)]
        self._stack = self.stacker.stack([*(state for _, state in members), *[members[0][1]] * spare])
        known = {id(member): numbers for member, numbers in zip(self.members, self.hparams, strict=True)}
        numbers = [known[id(member or self._slots[0])] for member in self._slots]
        self._numbers = self._split(jax.tree.map(lambda *x: np.stack(x), *numbers))

    def _split(self, tree: PyTree) -> PyTree:
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(POPULATION)))

    def _frozen(self, number: int) -> jax.Array:
        return self._split(np.array([member is None or not member.moves(number) for member in self._slots]))

    def _moving(self, number: int) -> list[tuple[int, Member]]:
        return [(slot, member) for slot, member in enumerate(self._slots) if member and member.moves(number)]

    def _evaluate(self, number: int) -> None:
        """Evaluates all members that are at step `number` and have no evaluation there yet."""
        here = [
            (slot, member)
            for slot, member in enumerate(self._slots)
            if member and member.ending is None and member.start <= number and not member.checkpoints.evaluated(number)
        ]
        if not here or not (number == 0 or self._due(number, self._config.evaluation.every)):
            return
        each_batch = functools.partial(self.watchdog.report, f"a batch of the evaluation at step {number}")
        with self.timers.time("evaluation"):
            params = _evaluation_params(self._stack)
            sums = {each.name: self.shared.sums(each, params, each_batch) for each in self.shared.sets}
            for slot, member in here:
                metrics = self._metrics(slot, member, sums, each_batch)
                if self.shared.measured and self._due(number, 0):
                    write_figures(member.run, self.shared.measured, number)
                member.evaluated(number, metrics)

    def _metrics(self, slot: int, member: Member, sums: PyTree, each_batch: Callable[[], object]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        own = self.stacker.take(self._stack, slot).evaluation_params() if self.shared.measured else None
        for each in member.evaluator.sets:
            metrics |= member.evaluator.losses(each, jax.tree.map(lambda x: x[slot], sums[each.name]))
            if own is not None:
                metrics |= member.evaluator.measure(each, own, each_batch)
        return metrics

    def _save(self, number: int) -> None:
        """Saves the members that step `number` has moved."""
        self.watchdog.report(f"saving step {number}")
        with self.timers.time("checkpoint"):
            for slot, member in self._moving(number):
                member.save(number, self.stacker.take(self._stack, slot))

    def _wait(self) -> None:
        with self.timers.time("checkpoint"), phase("saving"):
            for member in self.members:
                member.checkpoints.wait()

    def _end_some(self, number: int) -> None:
        """Ends the members that have made their steps, have stopped early, or have lost at a rung."""
        lost = self._lost(number)
        last = number == self._config.steps
        for member in self.members:
            if member.ending is not None or member.start > number:
                continue
            if last and not member.update_sound:
                member.end("diverged", number, f"step {number}: the last updates were not finite")
            elif last:
                member.end("done", number)
            elif member.stopping.reached or member.run.workdir in lost:
                member.end("stopped", number)
        active = [(slot, member) for slot, member in enumerate(self._slots) if member and member.ending is None]
        if active and 2 * self._needed(len(active)) <= len(self._slots):
            self._place([(member, self.stacker.take(self._stack, slot)) for slot, member in active])

    def _lost(self, number: int) -> set[pathlib.Path]:
        """Returns the workdirs of the runs that a rung at this step stops; it is the same after a kill in between."""
        lost: set[pathlib.Path] = set()
        for rung in self.rungs:
            if rung.step == number:
                followed = self.members[0].stopping.followed
                there = {w: [x for x in lines_of(w) if x["step"] == number] for w in self.everyone}
                costs = {w: followed.read(found) for w, lines in there.items() if (found := last_evaluation(lines))}
                order = sorted(costs, key=lambda w: (costs[w] if math.isfinite(costs[w]) else math.inf, str(w)))
                lost |= set(order[math.ceil(rung.keep * len(order)) :])
        return lost

    def _report(
        self, number: int, metrics: dict[str, jax.Array], flops: float, moved: list[tuple[int, Member]]
    ) -> None:
        """Writes the metrics of a finished step for each member that it moved, and ends those that have diverged."""
        values: dict[str, np.ndarray] = jax.device_get(metrics)
        moving = [(slot, member) for slot, member in moved if member.ending is None]
        # All members read the same tokens, so that these are the speeds of each one.
        self._clock.add(int(values.pop("tokens").max()), flops)
        self._bar.update()
        config = self._config
        due = number % config.logging.every == 0 or self._due(number, config.evaluation.every)
        speed = self._clock.read(number) if due else {}
        for slot, member in moving:
            own = {name: x[slot] for name, x in values.items()}
            tokens_seen = read_tokens(own.pop("tokens_seen"))
            in_a_row = int(own.pop("skipped_in_a_row"))
            member.update_sound = not in_a_row and math.isfinite(own["loss"])
            if due:
                numbers = own | speed | {"tokens_seen": tokens_seen}
                member.writer.write(number, training_line(numbers, self.course.epochs(number), self.timers))
            if in_a_row >= config.max_skipped:
                error = f"step {number}: {in_a_row} updates in a row were not finite"
                logging.warning("%s: %s; the run has diverged and stays as it is", member.run.workdir, error)
                member.end("diverged", number, error)
        if due:
            least = min((float(values["loss"][slot]) for slot, _ in moving), default=math.nan)
            together = len(moving) * speed["tokens_per_second"]
            self._bar.set_postfix_str(
                f"{len(moving)} of {len(self.members)} runs, least loss {least:.3f}, {together:,.0f} tokens/s",
                refresh=False,
            )
