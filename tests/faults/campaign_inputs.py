"""Commands with bad input: how many end with one message that names it, and how many with a traceback or not at all."""

from __future__ import annotations

import collections
import contextlib
import importlib
import io
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

from tests.faults import inputs
from tests.faults.campaign_kills import config_of

# Every this many-th case runs as a command of its own, and not in this process.
_APART = 25
_SECONDS = 120


class Hang(BaseException):
    """A command did not end in time; no Exception, which a command could catch."""


class _Reached(BaseException):
    """A command that trains or serves has accepted its input, and would begin to compile."""


def made(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Makes what the cases use, and returns the workdir, the classifier and the folder of Hugging Face by name."""
    from lmjax import cli

    bad = folder / "bad"
    bad.mkdir()
    (bad / "empty").touch()
    (bad / "binary").write_bytes(inputs.BYTES)
    (bad / "not UTF-8").write_bytes(b"caf\xe9 \xff\n" * 20)
    os.mkfifo(bad / "a pipe")
    for name, content in inputs.DATA.items():
        (bad / name).write_bytes(content)
    labels = {"plant": ("oak", "fir", "elm"), "animal": ("fox", "cow", "owl")}
    rows = [f"{a} {x}\t{kind}" for a in ("the", "an old", "no") for kind, xs in labels.items() for x in xs]
    (folder / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    config_of(folder)  # writes the corpus
    cli.run(["train", f"--data={folder / 'corpus.txt'}", f"--workdir={folder / 'run'}", *inputs.RUN, *inputs.SMALL])
    cli.run(["convert", f"--workdir={folder / 'run'}", f"--to={folder / 'hf'}"])
    cli.run(["train", f"--init_from={folder / 'run'}", "--objective=classification", f"--data={folder / 'rows.tsv'}",
             f"--workdir={folder / 'classifier'}", "--steps=1", "--batch_size=8", "--config.task.length=32",
             "--config.logging.tensorboard=false", "--noprogress"])  # fmt: skip
    return {name: folder / name for name in ("run", "classifier", "hf")}


def cases(places: dict[str, pathlib.Path]) -> list[inputs.Case]:
    """Returns all cases in a random order, in which each kind comes as often as another."""
    from lmjax.cli import COMMANDS
    from lmjax.commands import facts

    modules = {name: importlib.import_module(f"lmjax.commands.{name}_flags") for name in COMMANDS}
    commands = {name: module.define() for name, module in modules.items()}
    same = {name: getattr(module, "SAME", {}) for name, module in modules.items()}
    kinds = {
        "flags": inputs.of_flags(commands, same),
        "fields": inputs.of_fields(list(facts.fields(*facts.CONFIG))),
        "pairs": inputs.of_pairs(),
        "data": inputs.of_data([*inputs.DATA, "empty", "binary", "not UTF-8", "a pipe", ""]),
        "files": inputs.of_files(places),
    }
    rng, found = random.Random(0), []
    for each in map(list, kinds.values()):
        rng.shuffle(each)
        found += [(number / len(each) if len(each) < 100 else number / 100, case) for number, case in enumerate(each)]
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]


class Campaign:
    """Runs commands with bad input."""

    def __init__(self, folder: pathlib.Path):
        """Makes what the cases use."""
        self._folder, self._number = folder, 0
        self.places = made(folder)
        (folder / "folder").mkdir()
        (folder / "prompts.txt").write_text("the king\nthe river\n")
        (folder / "templates.json").write_text(
            '{"slots": {"a": {"x": ["king"], "y": ["river"]}}, "templates": ["the {a} goes"]}'
        )
        self._given = {
            "text": folder / "corpus.txt", "rows": folder / "rows.tsv", "bad": folder / "bad",
            "prompts": folder / "prompts.txt",
            "templates": folder / "templates.json",
            "folder": folder / "folder", **self.places,
        }  # fmt: skip

    def attempt(self, case: inputs.Case, *, apart: bool = False) -> tuple[str, str]:
        """Returns "refused", "accepted" or what is wrong, and the message; `apart`: in a process of its own."""
        self._number += 1
        place = self._folder / f"case{self._number}"
        place.mkdir()
        inputs.damage(case, place, self.places)
        values = {name: str(path) for name, path in self._given.items()} | {"case": str(place)}

        def filled(text: str) -> str:
            for name, path in values.items():
                text = text.replace(f"{{{name}}}", path)
            return text.replace("{{", "{").replace("}}", "}")

        argv = [filled(each) for each in case.argv]
        named = [each for each in map(filled, case.named) if each]
        begin = time.monotonic()
        outcome, message = (_apart if apart else _inside)(argv)
        took = time.monotonic() - begin
        if outcome == "refused" and not any(each in message for each in named):
            outcome = "refused without its name"
        shutil.rmtree(place, ignore_errors=True)
        return outcome, f"{took:.1f} s: {message}"


def _inside(argv: list[str]) -> tuple[str, str]:
    """Returns how a command ends in this process; one that trains or serves ends where it would begin to compile."""
    from lmjax import cli
    from lmjax.commands import train
    from lmjax.errors import UserError
    from lmjax.serving.engine import Engine

    def late(*_: object) -> None:
        raise Hang

    def stop(*_: object, **__: object) -> None:
        raise _Reached

    real, resumed = train.fit, any("/run" in each for each in argv if each.startswith("--workdir"))
    train.fit = real if resumed or any(each.startswith("--init_from") for each in argv) else stop
    start, Engine.start = Engine.start, stop
    signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.redirect_stderr(io.StringIO()) as errors:
            cli.run(argv)
        return "accepted", errors.getvalue()[-200:]
    except _Reached:
        return "accepted", ""
    except UserError as e:
        findings = shown.getvalue() if argv[0] == "doctor" else ""
        return ("refused", f"{e}{findings}") if str(e).count("\n") < 12 else ("a message of many lines", str(e))
    except Hang:
        return "hang", "".join(traceback.format_exc().splitlines(keepends=True)[-14:])
    except SystemExit as e:
        return "accepted" if not e.code else "refused", f"exit {e.code}"
    except BaseException:
        return "traceback", traceback.format_exc()[-1800:]
    finally:
        signal.alarm(0)
        train.fit, Engine.start = real, start


def _apart(argv: list[str]) -> tuple[str, str]:
    """Returns how a command ends as a process of its own."""
    argv = [each for each in argv if "\0" not in each]  # no process can be given it
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lmjax", *argv], capture_output=True, text=True, errors="replace",
            timeout=3 * _SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        return "hang", str(e.stderr)[-1000:]
    if "Traceback" in done.stderr or done.returncode < 0 or done.returncode == 1:
        return "traceback", f"exit {done.returncode}: {done.stderr[-1800:]}"
    return "refused" if done.returncode else "accepted", done.stderr


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign."""
    campaign = Campaign(folder)
    every, counts, longest = cases(campaign.places), collections.Counter(), 0.0
    for index, case in enumerate(every[:number], 1):
        # A server that accepts its flags does not end by itself.
        outcome, message = campaign.attempt(case, apart=index % _APART == 0 and case.argv[0] != "serve")
        counts[outcome] += 1
        longest = max(longest, float(message.partition(" ")[0]))
        print(f"{index} {outcome}: {case}: {message}", file=sys.stderr, flush=True)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    yield (
        f"| bad input, of {len(every)} made from all flags, fields and files of all commands | {counts.total()} | "
        f"{listed}; at most {longest:.0f} s |"
    )
