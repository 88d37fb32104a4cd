"""Adapters: few trained parameters that change the layers of a model whose own parameters stay as they are.

It may import model alone. `forms.py` has the formulas, `model.py` a model with adapters, `merge.py` their merging.

A kind of adapter: a subclass of `Form` in `forms.py` with its parameters and its formula for a Dense layer, an entry in
FORMS, and its formula in float64 in tests/adapters/test_forms.py. That makes `--config.adapter.kind=NAME`.
"""
