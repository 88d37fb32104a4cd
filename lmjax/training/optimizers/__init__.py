"""The optimizers, one file each: a group of config fields, and the rule that turns gradients into updates.

To add one, write a subclass of `Optimizer` in a file of its own and add a line below, under its name for `--optimizer`.
"""

from lmjax.schema import Schema
from lmjax.training.optimizers.adafactor import Adafactor
from lmjax.training.optimizers.adam import Adam, AdamW
from lmjax.training.optimizers.lion import Lion
from lmjax.training.optimizers.muon import Muon
from lmjax.training.optimizers.schedule_free import ScheduleFree
from lmjax.training.optimizers.sgd import SGD
from lmjax.training.optimizers.sophia import Sophia


class Optimizers(Schema):
    """The fields of every optimizer, by its name."""

    adamw: AdamW = AdamW()
    adam: Adam = Adam()
    sgd: SGD = SGD()
    adafactor: Adafactor = Adafactor()
    lion: Lion = Lion()
    muon: Muon = Muon()
    schedule_free: ScheduleFree = ScheduleFree()
    sophia: Sophia = Sophia()


OPTIMIZERS = {name: field.annotation for name, field in Optimizers.model_fields.items()}
