"""Training: the state, one step, the optimizers and schedules, the loop, checkpoints and metrics.

It may import model, objectives, data and parallel, never inference, the composed config or the flags.

An optimizer: `optimizers/toy.py` with a subclass of `Optimizer` (`optimizers/base.py`): its fields, each with a default
and a description, and `direction(h)`; `toy: Toy = Toy()` in `optimizers/__init__.py`; its paper's algorithm in
tests/training/test_optimizer_papers.py. That makes `--optimizer=toy` and `--config.optimizer.toy.FIELD`. The rule reads
a field that is a number as a traced array, `h.FIELD`, and any other field as a constant, `self.FIELD`.

A schedule: a subclass of `Shape` in `schedules.py` with its fields and `factor(phase, h)`; a line in `SCHEDULES`, and
one in `Schedules` if it has fields; its closed form in tests/training/test_schedules.py. Its fields are in the same
config as the optimizers', `--config.optimizer.NAME.FIELD`; only the groups that `optimizer.name` and
`optimizer.schedule` name are read.
"""
