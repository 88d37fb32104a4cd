"""Position schemes, which give a model the order of tokens: one file each, and the registry of all of them.

To add one: a subclass of `Scheme` in a file of this package, and a line in the registry below. Its config fields, if it
has any, are declared in `lmjax.model.config`. A scheme may import layers of the model, but not `lmjax.model.config`,
which imports this package for the names of the schemes; methods get the config as an argument.
"""

from lmjax.model.positions.alibi import Alibi
from lmjax.model.positions.learned import Learned
from lmjax.model.positions.relative import Relative
from lmjax.model.positions.rope import Rope
from lmjax.model.positions.scheme import Scheme
from lmjax.model.positions.sinusoidal import Sinusoidal

# Schemes that change attention only, not the embeddings, and so can be used in cross-attention too.
ACROSS: dict[str, Scheme] = {"none": Scheme(), "rope": Rope(), "relative": Relative(), "alibi": Alibi()}
SCHEMES: dict[str, Scheme] = {
    "none": ACROSS["none"],
    "learned": Learned(),
    "sinusoidal": Sinusoidal(),
} | ACROSS
