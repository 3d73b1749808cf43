"""The tree that somebody's script lies in: what is recorded of it at submission, and the copy that every attempt runs.

Tracked files are copied as they are, changes included.  What git does not track (data, outputs, an environment) is linked to
where it lies, so that relative paths go on meaning what they meant.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenomhpc.config import AnyConfig
from phenomhpc.config.models import RunConfig
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.retried import read_retries
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, git, read_provenance

# Larger trees are copied only when asked for.
MAX_FILES = 10_000
MAX_BYTES = 100 * 2**20
# provenance.json's key.
KEY = "script_code"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A git tree: its root, the tracked files that exist, and everything else (folders as one entry), relative to the root."""

    root: Path
    tracked: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum((self.root / name).lstat().st_size for name in self.tracked)


def tree_of(folder: Path) -> Tree | None:
    """The git tree that a folder lies in; None where there is none, or no git."""
    root = git(folder, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    top = Path(root.strip())
    tracked, others = (_names(git(top, "ls-files", "-z", *words)) for words in ((), ("--others", "--directory")))
    return Tree(
        root=top,
        tracked=tuple(name for name in tracked if os.path.lexists(top / name)),
        others=tuple(name.rstrip("/") for name in others),
    )


def _names(text: str | None) -> list[str]:
    return [name for name in (text or "").split("\0") if name]


def describe_code(config: AnyConfig, *, copied: bool = True) -> dict[str, Any]:
    """For provenance.json: the tree's root, the folder in it, commit, diff and whether it is copied; {} for our own jobs.

    copied: False where nothing is.  Raises UsageError when a copy is asked for where there is no git tree.
    """
    if not isinstance(config, RunConfig):
        return {}
    folder = Path(config.workdir)
    tree = tree_of(folder) if folder.is_dir() else None
    if tree is None:
        if config.snapshot_code is True and copied:
            raise UsageError(
                f"run: --snapshot-code: {folder} lies in no git tree; `git init` and `git add` what is to be kept"
            )
        return {KEY: {"root": None, "copied": False}}
    commit = git(tree.root, "rev-parse", "HEAD")
    small = len(tree.tracked) <= MAX_FILES and tree.num_bytes <= MAX_BYTES
    described = {
        "root": str(tree.root),
        "folder": str(folder.resolve().relative_to(tree.root.resolve())),
        "commit": commit.strip() if commit else None,
        "diff": git(tree.root, "diff", "HEAD") if commit else None,
        "copied": copied and (config.snapshot_code is True or (config.snapshot_code == "auto" and small)),
    }
    return {KEY: described}


def copy_script(described: Mapping[str, Any], target: Path, progress: Progress) -> None:
    """Copy the tree that `describe_code` has described to `target`, once, and say what is not frozen by that."""
    code = described.get(KEY)
    if code is None or target.is_dir():
        return
    if not code["copied"]:
        why = "it is large, or was not to be copied" if code["root"] else "it lies in no git tree"
        progress.say(f"the script's folder is not copied ({why}): a requeue runs what lies there then")
        return
    tree = tree_of(Path(code["root"]))
    if tree is None:
        raise UsageError(f"run: {code['root']}: git does not answer; run again, or give snapshot_code=false")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        copy_tree(tree, partial)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise WorkError(
            f"run: {error.filename or tree.root}: cannot be copied: {error.strerror}; snapshot_code=false runs it where it lies"
        ) from error
    unknown = _names(git(tree.root, "ls-files", "-z", "--others", "--exclude-standard"))
    loose = [name for name in unknown if name.endswith((".py", ".sh"))]
    if loose:
        progress.say(f"not tracked by git, so linked and not copied: {', '.join(loose[:5])}; `git add` freezes them")


def script_folder(config: RunConfig, paths: RunPaths, attempt: int) -> Path:
    """Where an attempt runs the command: the same folder in the copy of the tree, where there is one; that of the newest
    retry before it that brought its own, else that of the submission."""
    own = [retry for retry in read_retries(paths) if retry.own_code and retry.after < attempt]
    copy = paths.attempt(own[-1].after).script_code if own else paths.script_code
    if not copy.is_dir():
        return Path(config.workdir)
    described = own[-1].provenance if own else read_provenance(paths)
    return copy / str(described[KEY]["folder"])


def copy_tree(tree: Tree, target: Path) -> None:
    """Tracked files copied, everything else linked."""
    target.mkdir(parents=True)
    for name in tree.tracked:
        source, copy = tree.root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():  # a submodule: a tree of its own
            copy.symlink_to(source)
        elif source.is_symlink() and not _stays_inside(source, tree):
            copy.symlink_to(source.resolve())
        else:
            shutil.copy2(source, copy, follow_symlinks=False)
    _link(tree, target, tree.others)


def _stays_inside(link: Path, tree: Tree) -> bool:
    """Does a link lead, by a relative path, to a place in its own tree?"""
    text = os.readlink(link)  # noqa: PTH115
    return not os.path.isabs(text) and link.resolve().is_relative_to(tree.root.resolve())  # noqa: PTH117


def _link(tree: Tree, target: Path, names: Iterable[str]) -> None:
    for name in names:
        copy = target / name
        if name and not os.path.lexists(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(tree.root / name)
