"""Training: the state, one step, the optimizer, the loop, checkpoints and metrics."""
