"""Texts that transformers' `generate` wrote, and the models that wrote them."""
