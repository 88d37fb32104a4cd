"""Models in jax and flax.linen alone: no objective, no optimizer, no file."""
