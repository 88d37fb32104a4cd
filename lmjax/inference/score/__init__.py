"""Scoring: how likely a model of any family finds a text.

| module | what it gives |
|---|---|
| `score` | `score`, `perplexity`, `minimal_pairs`, `multiple_choice` |
| `texts` | from texts to the pieces of rows that are scored |
| `rows` | from pieces to log-likelihoods, batch by batch |
"""
