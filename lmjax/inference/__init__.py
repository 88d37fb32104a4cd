"""What a trained model writes (`generate`), and how likely it finds a text (`score`).

Each function takes a `loaded.LoadedModel` first: a model with its tokenizer and the ids that stand around a text.
"""
