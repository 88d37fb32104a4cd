"""Analysis: curves of runs, from their metrics.jsonl.

This room may import inference, the metrics of training, and the layers below them; matplotlib only inside functions.

To look inside a model, call it (`model(texts, output_attentions=True)`), or record and replace activations by name with
`lmjax.model.intercept`. To add a plot: a function in `plots` from arrays to a figure.
"""
