"""Text to batches, on the host. Nothing here imports jax (but the pipeline, through grain, once it starts)."""
