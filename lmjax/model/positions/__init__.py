"""Position schemes: how the order of tokens enters a model, a file each, and the registry of all of them.

To add one: a subclass of `Scheme` in a file of this package, and its line in the registry below. Its config fields,
if it has any, stand in `lmjax.model.config`. A scheme imports what the model is made of, and takes the config as an
argument: `lmjax.model.config` imports this package, for the names that it allows.
"""

from lmjax.model.positions.alibi import Alibi
from lmjax.model.positions.learned import Learned
from lmjax.model.positions.relative import Relative
from lmjax.model.positions.rope import Rope
from lmjax.model.positions.scheme import Scheme
from lmjax.model.positions.sinusoidal import Sinusoidal

# Schemes that relate a query to a key, and so can stand in cross-attention too.
ACROSS: dict[str, Scheme] = {"none": Scheme(), "rope": Rope(), "relative": Relative(), "alibi": Alibi()}
SCHEMES: dict[str, Scheme] = {
    "none": ACROSS["none"],
    "learned": Learned(),
    "sinusoidal": Sinusoidal(),
} | ACROSS
