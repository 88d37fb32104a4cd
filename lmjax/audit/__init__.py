"""Audit: what a model has learned and must not say: bias, unwanted outputs, leaked and repeated training text.

This room may import evaluation, inference, `analysis.page`, and the layers below them.

A check of bias on a published file is a function in `published` or `choices` that reads it into a `Bench`: what the
model scores, and the measurement that follows. `documents` tells what stands in data.
`findings` writes all results as one page.
"""
