"""The name of a run: what it trains, and what differs from the defaults."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from lmjax.commands.explain import shown
from lmjax.config import Config, changed

# Characters: of a name before its digest, and of a value in it. Most file systems take 255 in all.
_LONGEST, _VALUE = 100, 24


def run_name(beginning: Sequence[str], plain: Config, config: Config) -> str:
    """Returns a name for a workdir: `next_token-num_layers=6-1a2b3c4d`.

    Args:
        beginning: what the run is called before its differences.
        plain: the config without them.
        config: the config; its digest ends the name, so that no two configs share a workdir.
    """
    parts = [_plain(each) for each in beginning]
    fields = {path: new for path, (_, new) in changed(plain, config).items()}
    last = [path.rpartition(".")[2] for path in fields]
    for path, value in fields.items():
        short = path.rpartition(".")[2]
        text = shown(value)
        # Of a path its end tells it from others.
        text = pathlib.PurePath(text).name if "/" in text else text
        part = f"{short if last.count(short) == 1 else path}={_plain(text)[:_VALUE]}"
        if len("-".join([*parts, part])) > _LONGEST:
            parts.append("more")
            break
        parts.append(part)
    return "-".join([*parts, config.digest()])


def _plain(text: str) -> str:
    """Returns a text with nothing in it that a shell or a file system reads in a way of its own."""
    return re.sub(r"[^A-Za-z0-9_.,+=-]+", "_", text).strip("_")
