"""`lmjax COMMAND --flags`: runs the command, and turns errors that the user can fix into a message and an exit code."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence

from lmjax import __version__
from lmjax.arenas import one_arena
from lmjax.errors import FlagError, UserError
from lmjax.nearest import nearest
from lmjax.phases import phase, tell

COMMANDS = {
    "train": "train an encoder, a decoder or an encoder-decoder",
    "sweep": "train many runs that differ in a few fields, and compare them",
    "compare": "say which differences between runs are real",
    "scaling": "fit a scaling law to the runs of a sweep",
    "teach": "write a teacher's predictions for the rows of a run to a file",
    "selfcheck": "check that a run computes the same on every mesh and with every layout",
    "plan": "compile a run for devices that are not here, and say what it needs",
    "data": "show what stands in data: lengths, copies, personal data",
    "tokenizer": "train only a tokenizer",
    "convert": "import Hugging Face checkpoints, and export trained models",
    "average": "average the parameters of trained models",
    "compress": "make a trained model smaller",
    "generate": "continue prompts, answer them, or fill in masks",
    "serve": "answer requests over HTTP in the form of OpenAI's API, with a page to try the model",
    "chat": "talk with a trained model at a terminal",
    "doctor": "verify a workdir: checkpoints, data, versions",
    "evaluate": "score texts, pairs and questions, measure a classifier, or run lm-evaluation-harness",
    "predict": "label texts with a classifier",
    "explain": "show why a model says what it says",
    "embed": "vectors of texts and words: neighbours, analogies, a picture",
    "audit": "measure bias, unwanted outputs and memorised text",
    "rate": "say which of two answers is better, for training on preferences",
}


def usage() -> str:
    """Returns what `lmjax --help` prints."""
    listed = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return f"lmjax {__version__}: language models in JAX\n\n{listed}\n\nlmjax COMMAND --help lists a command's flags."


def run(argv: Sequence[str]) -> object:
    """Returns the result of a command, run in this process; for notebooks.

    Args:
        argv: the command and its flags, such as `["train", "--objective=mlm,nsp"]`.

    Raises:
        UserError: an error that the user can fix.
    """
    if not argv or argv[0] not in COMMANDS:
        given = argv[0] if argv else ""
        hint = nearest(given, COMMANDS)
        raise FlagError(f"no command {given!r}; {hint}{' ' if hint else ''}there are {', '.join(COMMANDS)} (--help)")
    command, arguments = argv[0], argv[1:]
    from absl import flags

    from lmjax.commands.parsing import help_text, parse

    # A command's flags are in a module of their own that does not import jax, so that --help and a wrong flag are fast.
    told = importlib.import_module(f"lmjax.commands.{command}_flags")
    values, same = told.define(), getattr(told, "SAME", None)
    overrides = parse(values, arguments, same, command=command, places=getattr(told, "ARGUMENTS", None))
    if values["help"].value:
        print(help_text(values, told.DESCRIPTION))
        return None
    # Grain and other libraries read absl's global flags, which are not parsed in a notebook.
    flags.FLAGS.mark_as_parsed()
    tell()
    with phase("loading jax"):
        main = importlib.import_module(f"lmjax.commands.{command}").main
    try:
        return main(values) if same is None else main(values, overrides)
    except OSError as e:
        if e.errno != errno.ENAMETOOLONG:
            raise
        given = {n: str(values[n].value) for n in values} | {f"config.{path}": v for path, v in overrides.items()}
        name = next((f"--{n}=" for n, value in given.items() if value and value in str(e.filename)), "")
        raise FlagError(f"{name}{str(e.filename)[:60]}...: this name is too long for a file; shorten it") from e


def main() -> None:
    """Runs the command of `sys.argv` and exits; the entry point of the script."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if argv else FlagError.exit_code)
    if argv[0] == "--version":
        print(__version__)
        sys.exit(0)
    one_arena()
    # Reading documents and tracing make millions of objects and hardly any cycles. With Python's own threshold of some
    # hundred, looking for cycles took a seventh of the start of a run, and a sixth if it read the embedded corpus.
    gc.set_threshold(max(10_000, gc.get_threshold()[0]), *gc.get_threshold()[1:])
    try:
        run(argv)
    except UserError as e:
        print(f"lmjax: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed the pipe; Python must not flush to it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("\nlmjax: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
