"""Analysis: curves of runs, from their metrics.jsonl, and figures of the results of classifiers.

This room may import evaluation, inference, the metrics of training, and the layers below them; matplotlib only inside
functions.

To look inside a model, call it (`model(texts, output_attentions=True)`), or record and replace activations by name with
`lmjax.model.intercept`. To add a plot: a function in `plots` or `figures` from arrays to a figure.
"""
