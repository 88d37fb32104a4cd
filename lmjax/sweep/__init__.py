"""Sweeps: many runs that differ in a few fields, from their description to their results.

- `space.py`: points and the combinators that make them; `grid.py`: the same from the text of `--grid`;
  `ladder.py`: sizes and lengths for a scaling law.
- `targets.py`: points -> named runs with whole configs.
- `ledger.py`: the folder of a sweep: `sweep.json`, `results.jsonl`, `runs/NAME/`; `outcome.py`: how a run ended.
- `program.py`: which runs can train as one population; `population.py`, `member.py`, `loop.py`: such a population.
- `launch.py`: trains what is left to train; `processes.py`, `slurm.py`: by several processes; `progress.py`: one view;
  `manifests.py`: what starts processes elsewhere.
- `arms.py`: ended runs as arms; `statistics.py`: what is said of them; `report.py`, `render.py`, `charts.py`,
  `csv_table.py`: how.

May import everything below it: runs, config, training and so on. Only commands and experiments import it.
"""
