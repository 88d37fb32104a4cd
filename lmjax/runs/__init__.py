"""A run, from its config to its end, and a model that a run or a Hugging Face folder left.

- `build.py`: config -> tokenizer, stores, model, state, step; `fit.py`: from the first step to the last.
- `workdir.py`: a run's folder: its lock, its identity, its environment and its name.
- `trained.py`: opens the model of a run or of a Hugging Face folder; `untrained.py`: makes one from nothing.

May import everything below it: config, training, parallel, inference, interop, objectives, data, model. Only
commands, sweep, serve, experiments and the public API import it.
"""
