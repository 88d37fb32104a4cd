"""Evaluation: the metrics of a trained model on texts, pairs and questions, and on tasks of lm-evaluation-harness.

`tasks.evaluate` takes a file or a list; `lmjax evaluate` calls it. `records` says what a task needs of a record
with named fields, and `harness` lends a model to lm-eval (extra `harness`, imported when it is used).

May be imported: data, inference, and what stands below.

To add a task: what it reads of a record in `records`, a function from data to metrics in `tasks.TASKS`, and what it
means in commands/evaluate_flags.py.
"""
