"""lmjax: encoder, decoder and encoder-decoder language models in JAX, from one block and one loop."""

__version__ = "0.1.0"
