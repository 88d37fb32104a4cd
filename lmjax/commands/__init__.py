"""The commands of `lmjax`: their flags and what they print. The work itself is done in the other rooms.

May be imported: everything but other front ends. The modules whose names end in `_flags`, and `flags`, `facts` and
`naming`, import no jax, so that --help and a wrong flag take no time; `facts` reads defaults from the configs' source.

To add a command: `NAME_flags.py` with DESCRIPTION, which `--help` shows, and `define()`, which returns the absl flags
(`flags.define_help` last; SAME, if flags stand for paths of the config, lets the command take `--config.a.b=value`);
`NAME.py` with `main(values)`, or with SAME `main(values, overrides)`, which returns the result for use in a notebook;
and its line in `cli.COMMANDS`. For every command `cli.run` parses the flags, shows help and reports progress, and
`cli.main` turns errors into exit codes.
"""
