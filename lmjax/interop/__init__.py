"""Hugging Face checkpoints in and out: safetensors, JSON and tokenizers, read as data; no code of a checkpoint runs.

May be imported: data, model, objectives, inference and parallel. Names of Hugging Face are used here alone.

`checkpoint` reads a folder and checks all names and shapes before any number; `export` writes one; `nearest` says which
family comes near a config that none can express; `generation` and `tokenizer_export` are for the files beside them.

To add a family: a file in `families/` with a dictionary FAMILIES from `model_type` to a `table.Family` (how config.json
reads and is written, the rows of tensors, classes with their heads, what is taken for granted of tokenizers), and its
line in `families/__init__.py`. tests/interop/toy_family.py is the smallest one. Its cases go to tests/interop/cases/.
"""
