"""From text to batches, on the host: tokenizers, readers, stores of token ids, packing, mixing and the pipeline.

Worker processes import this package and must not touch a device, so nothing here imports jax; only grain, which the
pipeline imports when it starts, does. It may import errors, schema, paths, phases and streams, never model or
objectives.

`files`, `fields` and `records` read text, JSONL, JSON and CSV files, and `sources` makes documents from them. A
tokenizer (`tokenizer`, `fast_tokenizer`) encodes the documents, and a `store` holds the token ids on disk. `packing`
decides which documents share a row, `mixing` from which data set the next row is, and `pipeline` makes the batches.

To add a file format, write a reader of its rows in a module like `csv_rows`, and add its suffix to `fields._FORMATS`.
"""
