"""Analysis: curves of runs, figures of classifiers' results and decisions, of attention, of the next token.

This room may import evaluation, inference, the metrics of training, and the layers below them; matplotlib only inside
functions.

To look inside a model, call it (`model(texts, output_attentions=True)`), or record and replace activations by name with
`lmjax.model.intercept`. To add a plot: a function in a file here
that returns a figure (`figures.new_axes`).
"""
