"""An optimizer and a schedule can be added as the docstring of lmjax.training says: a file or a class, and a line."""

import pathlib
import shutil
import subprocess
import sys

import lmjax

OPTIMIZER = '''
"""A toy."""

import optax
from pydantic import Field

from lmjax.training.optimizers.base import Numbers, Optimizer, Transformation


class Toy(Optimizer):
    """The gradient as it is, times a factor."""

    size: float = Field(3.0, gt=0, description="factor on the gradient")

    def direction(self, h: Numbers) -> Transformation:
        """Returns the gradient times the factor."""
        return optax.scale(h.size)
'''
SCHEDULE = '''
class Stairs(Shape):
    """Stairs down to the last rate."""

    stairs: float = Field(2.0, gt=0, description="how many")

    def factor(self, phase: Phase, h: Numbers) -> jax.Array:
        """Returns a factor that is constant in between."""
        return phase.fall(1 - jnp.floor(h.stairs * phase.progress) / h.stairs)


'''
CHECK = """
import jax, jax.numpy as jnp
from lmjax.config import resolve
from lmjax.model.dropout import DropoutRates
from lmjax.training.hyperparameters import Hyperparameters
from lmjax.training.update import make_optimizer
from lmjax.commands import train_flags
from lmjax.commands.parsing import parse

flags = train_flags.define()
argv = ["--optimizer=toy", "--schedule=stairs", "--config.optimizer.toy.size=5"]
parse(flags, argv, train_flags.SAME)
fields = {train_flags.FIELDS[name]: flags[name].value for name in ("optimizer", "schedule")}
config = resolve(fields=fields, overrides={"optimizer.toy.size": "5", "optimizer.stairs.stairs": "4"}).optimizer
config = config.with_fields({"learning_rate": 1.0, "weight_decay": 0.0, "clip_norm": None, "final_ratio": 0.0,
                             "warmup_steps": 0})
h = Hyperparameters.build(config, steps=9, dropout=DropoutRates(), loss_weights={})
params = {"kernel": jnp.ones((2, 2))}

@jax.jit
def update(h, step):
    optimizer = make_optimizer(config, h, step)
    return optimizer.update(params, optimizer.init(params), params)[0]["kernel"][0, 0]

assert update(h, 0) == -5, update(h, 0)
assert abs(update(h, 4) + 2.5) < 1e-6, update(h, 4)
other = h.replace(optimizer=jax.tree.map(lambda x: x * 2, h.optimizer))
assert update(other, 0) == -20
assert update._cache_size() == 1, "a number of the toy is a constant of the program"
"""


def insert(path: pathlib.Path, before: str, text: str) -> None:
    """Inserts a text before the only occurrence of another."""
    source = path.read_text()
    assert source.count(before) == 1, f"{path}: contains {before!r} {source.count(before)} times"
    path.write_text(source.replace(before, text + before))


def test_a_toy_optimizer_and_a_toy_schedule_take_a_class_and_a_line(tmp_path):
    shutil.copytree(
        pathlib.Path(lmjax.__file__).parent, tmp_path / "lmjax", ignore=shutil.ignore_patterns("__pycache__")
    )
    training = tmp_path / "lmjax" / "training"
    (training / "optimizers" / "toy.py").write_text(OPTIMIZER.lstrip())
    registry = training / "optimizers" / "__init__.py"
    insert(registry, "\n\nclass Optimizers", "from lmjax.training.optimizers.toy import Toy\n")
    insert(registry, "    adamw: AdamW", "    toy: Toy = Toy()\n")
    insert(training / "schedules.py", "SCHEDULES: dict", SCHEDULE.lstrip())
    insert(training / "schedules.py", '    "constant": Constant', '    "stairs": Stairs,\n')
    insert(training / "schedules.py", "    wsd: WarmupStableDecay", "    stairs: Stairs = Stairs()\n")
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
