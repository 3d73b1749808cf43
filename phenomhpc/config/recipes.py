"""Recipes: YAML files in jobs/ (phenomhpc/recipes in a wheel), composed of groups by Hydra, of which nothing else is used."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from phenomhpc.errors import UsageError

# Hydra's own way to say it, in the first line.
_PACKAGE = re.compile(r"# @package (\w+)\n")
PACKAGE = Path(__file__).resolve().parent.parent


def recipes_folder() -> Path:
    """Where the recipes lie: inside an installed wheel, or beside the package in a checkout."""
    shipped = PACKAGE / "recipes"
    return shipped if shipped.is_dir() else PACKAGE.parent / "jobs"


def groups() -> list[str]:
    """Names of the groups: codec, model and its parts mask and decoder, data, optim, cluster."""
    return sorted(
        entry.name for entry in recipes_folder().iterdir() if entry.is_dir() and not entry.name.startswith("_")
    )


def choices(group: str) -> list[str]:
    """Names of the recipes of a group."""
    return sorted(path.stem for path in (recipes_folder() / group).glob("*.yaml"))


def keys_of(group: str, choice: str) -> list[str]:
    """The dotted keys that a recipe of a group sets: under the group's name, or under another (`# @package model`)."""
    text = (recipes_folder() / group / f"{choice}.yaml").read_text()
    package = _PACKAGE.match(text)
    return [f"{package[1] if package else group}.{key}" for key in yaml.safe_load(text) if key != "defaults"]


def _check_choice(group: str, choice: str) -> None:
    known = choices(group)
    if choice not in known:
        near = difflib.get_close_matches(choice, known, 1, 0.3)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        raise UsageError(f"{group}={choice}: no such recipe; there are {', '.join(known)}{hint}")


def compose_recipe(name: str, group_choices: Mapping[str, str]) -> dict[str, Any]:
    """The plain mapping of a recipe: `name` is one of jobs/ or the path of a YAML file, which may use the same groups.

    Raises UsageError for an unknown recipe or group choice, or a file that does not compose.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for group, choice in group_choices.items():
        _check_choice(group, choice)
    folder, stem = recipes_folder(), name
    if name.endswith((".yaml", ".yml")):
        path = Path(name).absolute()
        if not path.is_file():
            raise UsageError(f"recipe {name}: no such file")
        folder, stem = path.parent, path.name
    elif not (folder / f"{name}.yaml").is_file():
        known = sorted(entry.stem for entry in folder.glob("*.yaml"))
        raise UsageError(f"recipe {name}: no such recipe; there are {', '.join(known)}, or give a YAML file")
    overrides = [f"{group}={choice}" for group, choice in group_choices.items()]
    if folder != recipes_folder():
        overrides.append(f"hydra.searchpath=['file://{recipes_folder()}']")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            composed = OmegaConf.to_container(compose(stem, overrides=overrides), resolve=False)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"recipe {name}: does not compose: {first}") from error
    if not isinstance(composed, dict):
        raise UsageError(f"recipe {name}: is no mapping of keys to values")
    return {str(key): value for key, value in composed.items()}
