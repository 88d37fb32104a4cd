"""Runs, from the config to the last step, and the trained models of workdirs and Hugging Face folders.

- `data.py`: config -> tokenizer and stores; `build.py`: -> stages, model, mesh; `fit.py`: state, compiled steps and
  the training loop.
- `workdir.py`: a run's folder: its lock, its config and its state; `doctor.py`: verifies and repairs it;
  `diverged.py`: rolls a diverged run back.
- `pretrained.py`: opens the model of a run or of a Hugging Face folder; `trained.py`: loads it onto devices;
  `untrained.py`: makes one with random weights; `documents.py`: the held-out losses of each document of a finished run.

May import everything below it: config, training, parallel, inference, interop, objectives, data, model. Only
commands, sweep, serve, experiments and the public API import it.
"""
