"""The lock pins everything that is installed, and nothing else names where packages come from."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools.lock_constraints import constraints

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_dependency_is_pinned_once_and_torch_is_the_named_one() -> None:
    pins = dict(line.split("==") for line in constraints((ROOT / "uv.lock").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[<>=\[; ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - pins.keys() == set()
    assert pins["torch"] == "2.13.0"
    assert not names & {"torchvision", "timm"} and not pins.keys() & {"torchvision", "timm"}


def test_two_versions_of_a_package_are_refused() -> None:
    twice = '[[package]]\nname = "x"\nversion = "1"\nsource = { registry = "r" }\n'
    with pytest.raises(ValueError, match="x has the versions 1 and 2"):
        constraints(twice + twice.replace('"1"', '"2"'))


def test_no_tracked_file_but_the_lock_names_a_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: nothing is tracked")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    host = re.compile(rb"pypi\.(org|python)|pythonhosted|index-url|find-links", re.IGNORECASE)
    free_to = {"uv.lock", str(Path(__file__).relative_to(ROOT))}
    named = [
        name
        for name in tracked
        if name not in free_to and (ROOT / name).is_file() and host.search((ROOT / name).read_bytes())
    ]
    assert named == []
