"""Objectives: for each a host half (documents -> features) and a device half (outputs -> loss sums).

One file per objective says everything about it: its settings, its rows, its losses, what it needs of the model, with
which others it shares rows, its prompt, its sample, its nano run. May be imported: data, model, and what stands below.

To add one, write its file and its tests, and name the class in the list of `registry.py`. The file has a subclass of
`base.ObjectiveConfig` and a frozen dataclass that derives from `base.Objective`, or from `TokenPrediction` or
`SourceToTarget` of `token_prediction.py`, with `config: <its settings>`, `name`, `architectures`, and `rows`, which
turns a store into rows of features. `base.Objective` documents what else it may declare.
"""
