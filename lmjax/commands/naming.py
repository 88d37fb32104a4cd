"""The name of a run: its objectives, and the fields that differ from the defaults."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from lmjax.config import Config, changed
from lmjax.paths import file_safe
from lmjax.schema import shown

# The most characters of a name before its digest, and of a value in it; most file systems allow 255 in total.
_LONGEST, _VALUE = 100, 24


def run_name(beginning: Sequence[str], plain: Config, config: Config) -> str:
    """Returns a name for a workdir: `next_token-num_layers=6-1a2b3c4d`.

    Args:
        beginning: the parts of the name before the differing fields.
        plain: the config without the differing fields.
        config: the run's config; the name ends with its digest, so that no two configs share a workdir.
    """
    parts = [file_safe(each) for each in beginning]
    fields = {path: new for path, (_, new) in changed(plain, config).items()}
    last = [path.rpartition(".")[2] for path in fields]
    for path, value in fields.items():
        short = path.rpartition(".")[2]
        text = shown(value)
        # Of a path, only the last part.
        text = pathlib.PurePath(text).name if "/" in text else text
        part = f"{short if last.count(short) == 1 else path}={file_safe(text)[:_VALUE]}"
        if len("-".join([*parts, part])) > _LONGEST:
            parts.append("more")
            break
        parts.append(part)
    return "-".join([*parts, config.digest()])
