"""Where a model is: a folder by its name, or the folder to which a checkpoint of the hub was downloaded."""

from __future__ import annotations

import pathlib

from lmjax.errors import FlagError
from lmjax.nearest import nearest


def local_folder(place: str) -> pathlib.Path:
    """Returns a folder by its name; raises FlagError, which suggests the nearest run, if it does not exist."""
    folder = pathlib.Path(place).expanduser()
    if not folder.is_dir():
        raise FlagError(f"{place}: there is no such folder; {_nearest_run(folder)}")
    return folder


def _nearest_run(folder: pathlib.Path) -> str:
    """Returns a hint for a folder that does not exist: the run or model folder with the nearest name, or all names."""
    places = {p.parent for parent in (folder.parent, pathlib.Path("runs")) for p in parent.glob("*/config.json")}
    known = sorted(map(str, places))
    same = [p for p in known if pathlib.Path(p).name == folder.name]
    hint = f"did you mean {same[0]}?" if same else nearest(str(folder), known)
    return hint or (f"there are {', '.join(known[:5])}" if known else "a run makes one: lmjax train --workdir=...")


def from_hub(name: str) -> pathlib.Path:
    """Returns the folder to which a checkpoint of the hub was downloaded: only tensors, JSON and tokenizer files."""
    beside = pathlib.Path(name).parent
    # The hub's names are OWNER/NAME or NAME; if OWNER is a folder here, the name is a path.
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or (beside.name and beside.is_dir()):
        return local_folder(name)
    hint = _nearest_run(pathlib.Path(name))
    try:
        import huggingface_hub
    except ImportError as e:
        raise FlagError(
            f"{name}: there is no such folder here ({hint}); to look on the Hugging Face hub: pip install "
            "huggingface_hub"
        ) from e
    try:
        patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as e:
        # Any error of the library or the network becomes one message, because the checkpoint cannot be downloaded.
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise FlagError(f"{name}: no such folder here ({hint}), and it cannot be loaded from the hub: {reason}") from e
