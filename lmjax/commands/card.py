"""`--card` of `lmjax audit`: a model card (Mitchell et al. 2019, arXiv:1810.03993) from a run's own files."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.audit.findings import Section, lines_of, number
from lmjax.commands.audit_flags import CHECKS
from lmjax.config import Config, from_json
from lmjax.data.sources import STDLIB
from lmjax.interop.shards import read_json
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.runs.cleaning import REMOVED, told
from lmjax.runs.identity import IDENTITY
from lmjax.runs.pretrained import Pretrained, open_pretrained
from lmjax.training.metrics import read_lines

_TO_WRITE = "*To be written by those who publish it: no file of the run says it.*"


def card(workdir: pathlib.Path, sections: Sequence[Section], given: Sequence[str], command: str) -> str:
    """Returns a model card as Markdown.

    Args:
        workdir: of the run.
        sections: of the audit.
        given: the checks of it, by the names of their flags.
        command: that made it.

    Raises:
        DataError: a file of the run is missing or damaged.
    """
    config = from_json(workdir / "config.json")
    identity, lines = read_json(workdir / IDENTITY), read_lines(workdir)
    removed = read_json(workdir / REMOVED) if (workdir / REMOVED).exists() else {}
    here = read_json(workdir / "env.json") if (workdir / "env.json").exists() else {}
    parts = {
        "Model": _listed(_model(config, open_pretrained(workdir))),
        "Intended use": [_TO_WRITE],
        "Training data": _listed(_data(config, identity)) + [f"* {line}" for line in told(removed)],
        "Training": _listed(_training(config, lines, here)),
        "Metrics": _metrics(lines),
        "Audit": _audit(sections),
        "Limits": [f"* {text}" for text in _limits(config, identity, given)],
    }
    made = [f"# Model card of {workdir.resolve().name}"]
    for title, body in parts.items():
        made += ["", f"## {title}", "", *body]
    return "\n".join([*made, "", f"Made by `{command}` from the files of the run.", ""])


def _listed(facts: Mapping[str, Any]) -> list[str]:
    return [f"* {name}: {value}" for name, value in facts.items() if value not in (None, "", ())]


def _model(config: Config, found: Pretrained) -> dict[str, Any]:
    """Returns the facts of the model."""
    model = found.config
    params = count_parameters(abstract_params(model, found.heads))
    return {
        "family": model.family.label,
        "objectives": ", ".join(config.task.objective),
        "parameters": f"{params:,}",
        "layers, width, heads": f"{model.num_layers}, {model.embed_dim}, {model.num_heads}",
        "vocabulary": f"{model.vocab_size:,}",
        "longest text it can read": f"{model.max_length:,} tokens",
        "began from": config.init_from and f"`{config.init_from}`",
        "adapter": None if config.adapter.kind == "none" else config.adapter.kind,
    }


def _data(config: Config, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was read, with the fingerprints that the run keeps."""
    prints = identity["train"] if isinstance(identity["train"], Mapping) else {"train": identity["train"]}
    facts = {f"training set {n}": _file(path, prints[n]) for n, path in config.data.train_sets.items()}
    evals = {e.name: _file(e.path, identity["evals"][e.name]) for e in config.data.eval}
    facts |= {f"evaluation set {name}": text for name, text in evals.items()}
    if not evals:
        facts["held out"] = f"{identity['held_out']:.0%} of the training text, by data.split={identity['split']}"
    return facts | {"tokenizer": f"fingerprint `{identity['tokenizer']}`"}


def _file(path: str, print_: str) -> str:
    return f"`{path}`{' (docstrings of Python)' if path == STDLIB else ''}, fingerprint `{print_}`"


def _training(config: Config, lines: Sequence[Mapping[str, float]], here: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how the model was trained, and on what."""
    steps = max((line["step"] for line in lines), default=0)
    seen = max((line["train/tokens_seen"] for line in lines if "train/tokens_seen" in line), default=0)
    optimizer, packages = config.optimizer, here.get("packages", {})
    return {
        "steps": f"{steps:,} of {config.batch_size:,} rows of {config.task.length:,} tokens",
        "tokens seen": f"{int(seen):,}",
        "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, schedule {optimizer.schedule}",
        "seed": config.seed,
        "devices": ", ".join(sorted(set(here.get("devices", ())))),
        "versions": ", ".join(f"{n} {v}" for n, v in {"lmjax": here.get("lmjax"), **packages}.items() if v),
        "commit": here.get("commit") and f"`{here['commit']}`",
    }


def _metrics(lines: Sequence[Mapping[str, float]]) -> list[str]:
    """Returns a table of the last evaluation."""
    last = next((line for line in reversed(lines) if any(name.startswith("eval/") for name in line)), None)
    if last is None:
        return ["The run has no evaluation."]
    rows = [(name.removeprefix("eval/"), x) for name, x in last.items() if name.startswith("eval/")]
    table = [f"| {name} | {number(x) if math.isfinite(x) else x} |" for name, x in rows]
    return [f"Of step {last['step']:,}, on the sets above, by the run itself.", "", "| | |", "|---|---|", *table]


def _audit(sections: Sequence[Section]) -> list[str]:
    """Returns the sections of the audit."""
    if not sections:
        return ["No audit was made: `lmjax audit --help` lists the checks that this command may be given."]
    return [line for section in sections for line in ("", *lines_of(section, "###"))][1:]


def _limits(config: Config, identity: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """Returns what the files of the run show that the model, or this card, cannot do."""
    longest = max([config.task.length, *config.stages.length])
    found = [f"No training row is longer than {longest:,} tokens: behind them, the model was never trained."]
    if not config.data.eval:
        found.append("The held-out text comes from the training sets: other text may be much harder.")
    if "cleaning" not in identity:
        found.append("Nothing was left out of the training data: copies, personal data and insults may be in it.")
    elif not (config.data.filter.words or config.data.filter.patterns or config.data.filter.model):
        left = "copies" if not config.data.filter.languages else "copies and other languages"
        found.append(f"No more than {left} were left out of the training data: personal data and insults may be in it.")
    found.append("The metrics of the run have no intervals, and are of one seed.")
    if missing := [name for name in CHECKS if name not in given]:
        found.append(f"Not audited: {', '.join(missing)}. What was not measured is not known to be harmless.")
    return found
