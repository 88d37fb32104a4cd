"""What a trained model writes, and how likely it finds a text; each function takes a `LoadedModel` first.

| module | functions |
|---|---|
| `lmjax.pretrained` | `load_model`: of a workdir, of a folder of Hugging Face, of its hub |
| `lmjax.inference.generate` | `generate`, `stream`: text behind prompts |
| `lmjax.inference.fill_mask` | `fill_mask`: what an encoder puts in the place of masks |
| `lmjax.inference.score` | `score`, `perplexity`, `minimal_pairs`, `multiple_choice` |
"""
