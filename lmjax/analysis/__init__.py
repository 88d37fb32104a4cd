"""Analysis: curves of what runs did, from their metrics.jsonl.

May be imported: inference, the metrics of training, and what stands below; matplotlib inside functions alone.

To look inside a model, call it (`model(texts, output_attentions=True)`), or record and replace activations by name with
`lmjax.model.intercept`. To add a plot: a function in `plots` from arrays to a figure.
"""
