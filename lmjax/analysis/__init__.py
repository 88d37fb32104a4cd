"""Analysis: curves of runs, figures of classifiers' results and decisions, of attention, of the next token.

This room may import evaluation, inference, metrics and optimizers of training, and the layers below them; matplotlib
only inside functions.

`record` and `patch` are the one way to look inside a model, and all that explains its outputs is built on them. To add
a plot: a function in a file here that returns a figure (`figures.new_axes`).
"""

from lmjax.analysis.inside import patch as patch
from lmjax.analysis.inside import record as record
