"""Scoring: the likelihood of texts under a model of any family.

| module | contents |
|---|---|
| `score` | `score`, `perplexity`, `minimal_pairs`, `multiple_choice` |
| `texts` | texts to pieces: the inputs and targets of one forward pass over one text |
| `tokens` | `by_token`: the likelihood of each token of a text |
| `rows` | pieces to log-likelihoods, batch by batch |
| `masks` | the sets of masked tokens that bound a likelihood |
| `join` | tokens of a context and a continuation that are read as one text |
"""
