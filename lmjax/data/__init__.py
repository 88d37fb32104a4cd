"""Text to batches, on the host: tokenizers, sources, stores of token ids, packing, mixing, the pipeline.

Nothing here imports jax (but the pipeline, through grain, once it starts): worker processes import this room, and must
not touch a device. May be imported: errors, schema, paths, phases, streams; never model or objectives.

A text goes from a file (`files` opens and cuts, `fields` and `records` name what a record holds: the only readers of
text, JSONL and CSV) over a source (`sources`) to ids (`tokenizer`, `fast_tokenizer`), which a `store` keeps;
`packing` says which documents share a row, `mixing` which data set is next, and `pipeline` gives batches.

To add a file format: its rows in a module beside `csv_rows`, and its suffix in `fields._FORMATS`.
"""
