"""What a trained model writes (`generate`), how likely it finds a text (`score`), and what it computes (`forward`).

Each function takes a `loaded.LoadedModel` first: a model with its tokenizer and the ids that stand around a text. It is
callable, and then returns hidden states, attention weights and logits of texts as a `forward.ModelOutput`.

May be imported: data, model, objectives (prompts and rows) and parallel; never a config of a run, nor a folder:
`lmjax.runs.trained` opens those.

To add a way to write: a strategy in `generate/` (`strategy.py` says what it does at each token), a field of
`GenerateConfig`, and its flag in commands/generate_flags.py. To add a score: a function in `score/score.py`.
"""
