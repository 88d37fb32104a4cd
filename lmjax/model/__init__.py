"""Models in jax and flax.linen: what is computed, from tokens to hidden states and logits.

It may import errors, schema and axes; it knows no objective, no optimizer, no tokenizer and no file.

To add a position scheme: a subclass of `positions.scheme.Scheme` in a file of `positions/`, and its line in the
registry `positions.SCHEMES` (or `ACROSS`, if it relates a query to a key). ModelConfig allows every name in it.
To add a family: its traits in `traits.FAMILIES`; where it puts sides together in a new way, a module in `families`.
To add a head: its module in `heads`, and its name in the registry of heads.
To add a choice of the block: a field of ModelConfig, its rules, and the place in `transformer` that reads it.
"""
