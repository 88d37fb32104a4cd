"""Inference with a trained model: text (`generate`), likelihoods (`score`), vectors (`embed`), arrays (`forward`).

The first argument of each function is a `loaded.LoadedModel`: a model with its tokenizer and prompt format. Calling it
runs one forward pass and returns hidden states, attention weights and logits as a `forward.ModelOutput`.

This room may import data, model, objectives (prompts and rows) and parallel. It does not read run configs or run
folders: `lmjax.runs.pretrained` opens those.

To add a decoding strategy: a class in `generate/` with the methods of `generate.strategy.Strategy`, a field of
`GenerateConfig`, and its flag in commands/generate_flags.py. To add a score: a function in `score/score.py`.
"""
