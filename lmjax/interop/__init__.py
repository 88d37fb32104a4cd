"""Import and export of Hugging Face checkpoints: safetensors, JSON and tokenizers. No code of a checkpoint is executed.

This room may import data, model, objectives, inference and parallel. Only this room uses names of Hugging Face.

`checkpoint` reads a folder and checks all names and shapes before it reads weights; `export` writes one; `nearest`
finds the family nearest to a config that none can express; `generation` reads generation settings, and
`tokenizer_export` writes tokenizers.

To add a family: a file in `families/` with a dictionary FAMILIES from `model_type` to a `table.Family` (functions that
read and write config.json, the table of tensors, classes with their heads, the form of tokenizers), and its line in
`families/__init__.py`. The smallest example is tests/interop/toy_family.py. Its cases go to tests/interop/cases/.
"""
