"""The commands of `lmjax`: their flags, and what they print. What they do stands in the rooms below.

May be imported: everything but other front ends. The modules whose names end in `_flags`, and `flags`, `facts` and
`naming`, import no jax, so that help and a wrong flag need none; `facts` reads defaults from the source of configs.

To add a command: `NAME_flags.py` with DESCRIPTION, which `--help` shows, and `define()`, which returns the absl flags
(`flags.define_help` last; SAME, if flags stand for paths of the config, lets the command take `--config.a.b=value`);
`NAME.py` with `main(values)`, or `main(values, overrides)` where there is a SAME, which returns what a notebook wants;
and its line in `cli.COMMANDS`. `cli.run` parses, shows help and tells progress, and `cli.main` turns errors into exit
codes, for all of them alike.
"""
