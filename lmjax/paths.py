"""Paths that users write, folders that are free to be used, and folders that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator

# What file managers and network file systems leave in any folder.
_LITTER = (".DS_Store", ".localized", "Thumbs.db", "desktop.ini")
_LITTER_STARTS = ("._", ".nfs")
# The largest JSON files and tokenizers that are published have a third of it.
MOST_BYTES = 100_000_000


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path with `~` and `~name` as the home directory; a name that no user has is left as it is."""
    return pathlib.Path(os.path.expanduser(path))


def shell_quoted(path: str | os.PathLike[str]) -> str:
    """The path as a shell takes it, for commands that are shown to be copied."""
    return shlex.quote(str(path))


def is_litter(name: str) -> bool:
    """Whether a file of this name is nobody's content."""
    return name in _LITTER or name.startswith(_LITTER_STARTS)


def is_free(folder: pathlib.Path) -> bool:
    """Whether there is no such folder, or it holds nothing; what a file manager leaves there does not count."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(is_litter(path.name) for path in folder.iterdir())


def make_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders that had to be made so that `folder` is there, the innermost first.

    Raises:
      OSError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_folders(made: list[pathlib.Path]) -> None:
    """Removes folders that `make_folders` made, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()


def sync_folder(folder: pathlib.Path) -> None:
    """Brings the entries of a folder, such as a file renamed in it, onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems do not offer this for folders.
        pass
    finally:
        os.close(descriptor)


def write_durably(path: pathlib.Path, text: str) -> None:
    """Writes a file in one piece or not at all; once this returns, it is on the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, which takes the place of the free `folder` once the context ends without an error."""
    made = make_folders(folder.parent)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            for path in filter(lambda path: is_litter(path.name), list(folder.iterdir())):
                path.unlink()
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_folders(made)
        raise


def read_regular(path: pathlib.Path, most: int = MOST_BYTES) -> bytes:
    """Returns the content of a file that others may have made: one of a bounded size, no pipe and no device.

    Raises:
        OSError: it cannot be read, or is none such.
    """
    if not path.is_dir() and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a pipe or a device")
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are read")
        return file.read(most)
