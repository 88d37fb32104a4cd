"""Paths given by users, checks that a folder is free, and folders that are written completely or not at all."""

import contextlib
import errno
import os
import pathlib
import re
import shlex
import shutil
import time
from collections.abc import Iterator

# Names, and starts of names, of files that file managers and network file systems create in any folder.
_LITTER = (".DS_Store", ".localized", "Thumbs.db", "desktop.ini")
_LITTER_STARTS = ("._", ".nfs")
# The most bytes of a file that is read whole: three times the largest published JSON files and tokenizers.
MOST_BYTES = 100_000_000


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path with `~` and `~name` replaced by the home directory; `~name` stays if there is no such user."""
    return pathlib.Path(os.path.expanduser(path))


def shell_quoted(path: str | os.PathLike[str]) -> str:
    """Returns the path quoted for a shell, for commands in messages that the user may copy."""
    return shlex.quote(str(path))


def file_safe(text: str) -> str:
    """Returns a text without the characters that have a meaning to a shell or a file system."""
    return re.sub(r"[^A-Za-z0-9_.,+=-]+", "_", text).strip("_")


def is_litter(name: str) -> bool:
    """Returns whether a file of this name was created by a file manager or a network file system, not by the user."""
    return name in _LITTER or name.startswith(_LITTER_STARTS)


def is_free(folder: pathlib.Path) -> bool:
    """Returns whether the folder does not exist or is empty; files that `is_litter` recognises do not count."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(is_litter(path.name) for path in folder.iterdir())


def make_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Makes `folder` with its parents, and returns the folders that did not exist before, the innermost first.

    Raises:
        OSError: a folder cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_folders(made: list[pathlib.Path]) -> None:
    """Removes the folders that `make_folders` returned, in order, and stops at the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Sets the file of an OSError that names none, as those of writes and syncs."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or str(path)
        raise


def sync_folder(folder: pathlib.Path) -> None:
    """Syncs the entries of a folder to disk, so that a file renamed in it keeps its new name after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with _named(folder):
            os.fsync(descriptor)
    except OSError as e:
        # Some network file systems do not offer this for folders; other errors mean that the entries may be lost.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def write_durably(path: pathlib.Path, text: str) -> None:
    """Writes a file and syncs it to disk; if it is interrupted, the old file stays complete."""
    temporary = path.with_name(f"{path.name}.tmp")
    with _named(path), temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def remove_folder(folder: pathlib.Path) -> None:
    """Removes a folder with all that is in it, also if a write that was under way adds to it for a moment."""
    for _ in range(20):
        try:
            shutil.rmtree(folder)
        except OSError as e:
            if e.errno != errno.ENOTEMPTY:
                raise
            time.sleep(0.1)
        else:
            return
    shutil.rmtree(folder)


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder to write to, which is renamed to `folder` when the context ends without an error.

    `folder` must be free (`is_free`). After an error, the temporary folder is removed.
    """
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
    """Returns the content of a file from an untrusted source: it must be a regular file of at most `most` bytes.

    Raises:
        OSError: the file cannot be read, is too large, or is a pipe or a device.
    """
    if not path.is_dir() and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a pipe or a device")
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are read")
        return file.read(min(most, size + 2**20))  # a read of `most` bytes allocates them all
