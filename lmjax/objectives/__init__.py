"""Training objectives: each has a host half (documents -> features) and a device half (outputs -> loss sums).

One file per objective holds all its facts: settings, rows, losses, what it needs from the model, the objectives that
it can share rows with, prompt, sample and nano run. This package may import data, model and the layers below them.

To add one, write its file and its tests, and add the class to the list in `registry.py`. The file has a subclass of
`base.ObjectiveConfig` and a frozen dataclass that derives from `base.Objective`, or from `TokenPrediction` or
`SourceToTarget` of `token_prediction.py`, with `config: <its settings>`, `name`, `architectures`, and `rows`, which
turns a store into rows of features. `base.Objective` documents what else it may declare.
"""
