"""Models in jax and flax.linen: the computation from tokens to hidden states and logits.

This package may import errors, schema and axes; it does not depend on objectives, optimizers, tokenizers or files.

To add a position scheme: a subclass of `positions.scheme.Scheme` in a file of `positions/`, and a line in the registry
`positions.SCHEMES` (or `ACROSS`, if it can be used in cross-attention). ModelConfig accepts every name in it.
To add a family: its traits in `traits.FAMILIES`; if it combines encoder and decoder in a new way, a module in
`families`.
To add a head: its module in `heads`, and a line in the registry of heads.
To add an option of the block: a field of ModelConfig, its rules, and the code in `transformer` that reads it.
"""
