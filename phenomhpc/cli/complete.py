"""What the shell offers behind TAB: runs, recipes, the choices of groups.  Nothing heavy is imported: a key press waits for it."""

from __future__ import annotations

import os
from pathlib import Path

import typer

# A person picks from a list this long at most; the newest come first.
MOST = 200


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """IDs of the runs that begin so, newest first, and `last`."""
    from phenomhpc.config.defaults import default_layers

    given = ctx.params.get("folder")
    if given is None:
        values = {name: value for layer in default_layers() for name, value in layer.values.items()}
        given = values.get("runs") or "runs"
    folder = Path(str(given)).expanduser()
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.is_dir()]
        newest = sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)
    except OSError:
        return []
    names = [entry.name for entry in newest if entry.name.startswith(incomplete)][:MOST]
    names = [name for name in names if (folder / name / "run.yaml").exists()]
    return names + (["last"] if newest and "last".startswith(incomplete) else [])


def complete_recipe(incomplete: str) -> list[str]:
    """Names of the recipes that begin so."""
    from phenomhpc.config.recipes import recipes_folder

    return sorted(path.stem for path in recipes_folder().glob(f"{_plain(incomplete)}*.yaml"))


def complete_setting(incomplete: str) -> list[str]:
    """`group=recipe` words that begin so: model=mae_vit_l8, optim=lion, ..."""
    from phenomhpc.config.recipes import choices, groups

    words = [f"{group}={choice}" for group in groups() for choice in choices(group)]
    return [word for word in words if word.startswith(incomplete)]


def _plain(text: str) -> str:
    return "".join(character for character in text if character.isalnum() or character in "_-.")
