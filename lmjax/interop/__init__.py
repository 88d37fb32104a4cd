"""Hugging Face checkpoints in and out: safetensors and JSON, read as data."""
