"""Evaluation: the metrics of a trained model on texts, pairs and questions, and on tasks of lm-evaluation-harness.

`tasks.evaluate` takes a file or a list; `lmjax evaluate` calls it. `records` parses the records of each task, and
`harness` is the adapter to lm-eval (extra `harness`, imported only when it is used).

`predicted` predicts and measures the task that a model was fine-tuned for, with the metrics of `measures`. These are
made of functions that know no model and no run, from gold values and predictions to a `Measurement`: in `classes`,
`regression`, `entities`, `answers` and `texts`. `intervals` gives its bootstrap intervals, and compares two of them.
`documents` takes the losses of an evaluation apart by document.

This room may import data, inference, and the layers below them.

To add a task: a parser of its records in `records`, a function from data to metrics in `tasks.TASKS`, and its
description in commands/evaluate_flags.py.
"""
