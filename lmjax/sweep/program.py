"""Which runs can be trained as one population: those whose compiled step and batches are the same."""

from __future__ import annotations

from lmjax import strict_json
from lmjax.config import Config
from lmjax.training.hyperparameters import untraced

# Fields of the model that only its initial parameters depend on.
_INITIAL = ("initializer", "init_std")


def program(config: Config) -> str | None:
    """Returns a text that is equal for runs that can be trained as one population; None: the run trains by itself.

    Such runs differ only in traced numbers (learning rate and the other numbers of optimizer and schedule, dropout
    rates above zero, penalties, loss weights), in the initial parameters, and in the seeds of parameters and dropout.
    They have the same number of steps and read the same batches, so that their comparison is paired.
    """
    alone = config.minutes is not None or config.on_divergence == "rollback" or config.parallel.kind == "pmap"
    if alone or config.steps_per_call > 1:
        return None
    values = config.model_dump()
    values["optimizer"] = untraced(config.optimizer)
    dropout = config.model.dropout
    values["model"]["dropout"] |= {name: rate > 0 for name, rate in dropout.by_name().items()}
    for name in _INITIAL:
        del values["model"][name]
    for name in ("balance_weight", "z_weight"):
        del values["model"]["moe"][name]
    for name in type(config.task).penalty_fields:
        values["task"][name] = getattr(config.task, name) > 0
    for name in config.task.objective:
        for field in getattr(config.task, name).weighting:
            del values["task"][name][field]
    del values["seed"]
    values["seeds"] = {source: config.seed_of(source) for source in ("order", "subset")}
    return strict_json.dumps(values)
