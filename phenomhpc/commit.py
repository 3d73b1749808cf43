"""commit(): the one way anything is published.

    NAME.tmp-TOKEN  --write, fsync-->  rename to NAME  --fsync of the folder-->  durable

What holds if the process or the machine dies
  before the rename   NAME is what it was (or absent); a NAME.tmp-* may lie about and is never read
  after the rename    NAME is the old or the new content, whole, until the folder's fsync; the new one after it
Readers therefore never see a half-written NAME.  Two writers of one NAME need different tokens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT}


def new_token() -> str:
    """A fresh 128-bit token, as 32 hexadecimal digits."""
    return secrets.token_hex(16)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a descriptor says what went wrong and not with which file: name it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def is_full(error: BaseException | None) -> bool:
    """Was it a full disk or a used-up quota, here or in what the error came from?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def fsync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, each one durable in its parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for entry in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another task may be faster
            entry.mkdir(mode)
        fsync_folder(entry.parent)


@contextlib.contextmanager
def committing(path: Path, *, token: str = "") -> Iterator[BinaryIO]:
    """A binary, seekable file that becomes `path` when the block ends, whole and durable; nothing on an exception.

    The folder of `path` is made if absent.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}{TEMPORARY}{token or new_token()}")
    try:
        with temporary.open("w+b") as file:
            yield file
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def commit(path: Path, data: bytes | str, *, token: str = "") -> None:
    """Publish `data` as `path` (text as UTF-8): whole or absent, durable on return."""
    with committing(path, token=token) as file, naming(path):
        file.write(data.encode() if isinstance(data, str) else data)


def commit_first(path: Path, data: bytes | str) -> bool:
    """Publish `data` as `path` unless it is there already; of several that try at once one gets True.

    For decisions: whoever gets False reads what was decided.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{new_token()}")
    commit(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Delete what dead writers of `name` (of anything in `folder`, by default) left; only its present owner may call."""
    for leftover in folder.glob(f"{name}*{TEMPORARY}*" if not name else f"{name}{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
