"""Finds what is wrong with a workdir and which checkpoints are usable, and repairs what it can without loss."""

from __future__ import annotations

import json
import pathlib
from importlib import metadata
from typing import NamedTuple

from lmjax.config import Config, from_json
from lmjax.data.sources import corpus_fingerprint
from lmjax.errors import DataError, FlagError, UserError
from lmjax.interop.shards import read_json
from lmjax.runs.identity import IDENTITY
from lmjax.runs.workdir import CONFIG, State, lock_workdir, read_state, write_state
from lmjax.training import manifest
from lmjax.training.checkpoint import checkpoint_folder, remove_temporaries, saved_steps, temporaries
from lmjax.training.metrics import METRICS, read_lines

_DAMAGED = ".damaged"


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        sound: whether the examined thing is as it should be.
        text: what was examined, and what is wrong with it.
    """

    sound: bool
    text: str


def damaged_steps(workdir: pathlib.Path) -> dict[int, list[str]]:
    """Returns the steps whose checkpoint is damaged, each with the problems of its files."""
    found = {step: manifest.problems(checkpoint_folder(workdir, step)) for step in saved_steps(workdir)}
    return {step: problems for step, problems in found.items() if problems}


def examine(workdir: pathlib.Path) -> list[Finding]:
    """Returns findings about the files, checkpoints, data and versions of a workdir; changes nothing."""
    findings = []

    def check(name: str, read: object) -> object:
        try:
            value = read()
        except UserError as e:
            findings.append(Finding(False, str(e)))
            return None
        findings.append(Finding(True, f"{name}: can be read"))
        return value

    config = check(CONFIG, lambda: from_json(workdir / CONFIG))
    if (state := check("state.json", lambda: read_state(workdir))) is not None:
        findings.append(Finding(True, f"state: {state.stage}, newest checkpoint saved: {state.saved}"))
    if (workdir / METRICS).exists():
        check(METRICS, lambda: read_lines(workdir))
    findings += [*_checkpoints(workdir, state), *_versions(workdir)]
    if config is not None and (workdir / IDENTITY).exists():
        findings += _data(workdir, config)
    return findings


def _checkpoints(workdir: pathlib.Path, state: State | None) -> list[Finding]:
    damaged, steps = damaged_steps(workdir), saved_steps(workdir)
    findings = []
    for step in steps:
        folder = checkpoint_folder(workdir, step)
        sound = "matches its manifest" if manifest.has_manifest(folder) else "has no manifest: cannot be verified"
        findings.append(Finding(step not in damaged, f"step {step}: {'; '.join(damaged.get(step, [sound]))}"))
    whole = [step for step in steps if step not in damaged]
    if whole:
        findings.append(Finding(True, f"a run resumes from step {whole[-1]}, which every command can read"))
    elif steps or (state and state.saved is not None):
        findings.append(Finding(False, "no checkpoint can be used; copy one back, or start over in another --workdir"))
    left = [path.name for path in temporaries(workdir)]
    return findings + (
        [Finding(False, f"left by a killed save, or being saved now: {', '.join(left)}")] if left else []
    )


def _versions(workdir: pathlib.Path) -> list[Finding]:
    try:
        there = read_json(workdir / "env.json").get("packages") or {}
        if not isinstance(there, dict):
            return [Finding(False, "versions: env.json: packages is not an object")]
        here = {name: metadata.version(name) for name in there}
    except (DataError, metadata.PackageNotFoundError, ValueError) as e:
        return [Finding(False, f"versions: {e}")]
    other = [f"{name} {there[name]} there, {here[name]} here" for name in there if there[name] != here[name]]
    return [
        Finding(
            True, f"versions: {'; '.join(other) + ': results may differ in the last bits' if other else 'the same'}"
        )
    ]


def _data(workdir: pathlib.Path, config: Config) -> list[Finding]:
    try:
        known = read_json(workdir / IDENTITY)
        prints = {name: corpus_fingerprint(path) for name, path in config.data.train_sets.items()}
    except UserError as e:
        return [Finding(False, str(e))]
    same = known.get("train") == json.loads(json.dumps(prints if config.data.mixture else prints["train"]))
    return [Finding(same, f"training data: {'unchanged' if same else 'changed since; the run cannot resume with it'}")]


def repair(workdir: pathlib.Path) -> list[str]:
    """Removes what killed saves have left, moves damaged checkpoints aside and rewrites a damaged state.json.

    Returns:
        A line for each thing that was done.

    Raises:
        FlagError: another process writes to the workdir, or an earlier damaged checkpoint is in the way.
    """
    done = []
    with lock_workdir(workdir):
        for path in temporaries(workdir):
            done.append(f"removed {path.name}")
        remove_temporaries(workdir)
        for step in damaged_steps(workdir):
            aside = checkpoint_folder(workdir, step).with_name(f"{step}{_DAMAGED}")
            if aside.exists():
                raise FlagError(f"{aside}: exists already; move it away first")
            checkpoint_folder(workdir, step).rename(aside)
            done.append(f"moved step {step} aside, to {aside.name}")
        steps = saved_steps(workdir)
        try:
            state = read_state(workdir)
        except DataError:
            state = None
            write_state(workdir, State("training", steps[-1] if steps else None))
            done.append("replaced state.json")
        if state and steps and state.saved not in (None, steps[-1]):
            write_state(workdir, State(state.stage, steps[-1]))
    return done
