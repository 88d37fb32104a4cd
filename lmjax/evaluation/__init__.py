"""Evaluation: a trained model on tasks that others have defined."""
