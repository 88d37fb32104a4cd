"""Inference: what a trained model writes."""
