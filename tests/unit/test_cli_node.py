"""phenomhpc node, typed in a shell of its own folder and state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / "tools"  # no Slurm, no nvidia-smi
        tools.mkdir()
        self.environment = {
            **os.environ,
            "PATH": str(tools),
            "PHENOMHPC_STATE": str(folder / "state"),
            "PHENOMHPC_SITE": str(folder / "etc" / "site.json"),
        }

    def type(self, *words: str, code: int = 0) -> str:
        argv = [sys.executable, "-m", "phenomhpc", "node", *words]
        done = subprocess.run(argv, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def excluded(self) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = json.loads(self.type("excluded", "list", "--json"))
        return value


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_nodes_are_added_listed_and_cleared(shell: Shell) -> None:
    assert "no node is excluded" in shell.type("excluded", "list")
    shell.type("excluded", "add", "n1", "n2", "--reason", "fans", "--cluster", "c", "--hours", "2")
    shell.type("excluded", "add", "n3", "--reason", "DIMM", "--cluster", "c", "--everybody", "--until-cleared")
    assert [(each["node"], each["binding"], each["until"] is None) for each in shell.excluded()] == [
        ("n1", False, False),
        ("n2", False, False),
        ("n3", True, True),
    ]
    table = shell.type("excluded", "list")
    assert "fans" in table and "everybody" in table and "cleared" in table
    assert "may be used again on c: n1" in shell.type("excluded", "clear", "n1", "--cluster", "c")
    assert "n3: not in" in shell.type("excluded", "clear", "n3", "--cluster", "c", code=2)
    shell.type("excluded", "clear", "--all", "--cluster", "c")
    assert [each["node"] for each in shell.excluded()] == ["n3"]


def test_what_is_missing_is_said(shell: Shell) -> None:
    assert "name nodes, or give --all" in shell.type("excluded", "clear", "--cluster", "c", code=2)
    assert "--cluster is missing" in shell.type("excluded", "add", "n1", "--reason", "x", code=2)
    assert "name nodes one by one" in shell.type("excluded", "add", "n[1-2]", "--reason", "x", "--cluster", "c", code=2)


def test_a_torn_ledger_is_one_line_on_stderr(shell: Shell) -> None:
    shell.type("excluded", "add", "n1", "--reason", "x", "--cluster", "c")
    (shell.folder / "state" / "excluded.json").write_text('{"schema": 1, "entr')
    said = shell.type("excluded", "list").splitlines()
    assert len(said) == 2 and "mend or remove it" in said[1]


def test_this_machine_is_checked(shell: Shell) -> None:
    runs, store = shell.folder / "runs", shell.folder / "store"
    runs.mkdir()
    store.mkdir()
    (store / "dataset.json").write_text("{}")
    assert shell.type("check", "--runs", str(runs), "--store", str(store)).rstrip().endswith("fit")
    found = json.loads(shell.type("check", "--runs", str(runs), "--store", str(store / "gone"), "--json", code=1))
    assert found["problems"] == [f"{store}/gone: not readable (No such file or directory)"] and not found["fit"]
    assert list(runs.iterdir()) == []


def test_a_gpu_that_lost_its_driver_is_not_fit(shell: Shell) -> None:
    runs = shell.folder / "runs"
    runs.mkdir()
    program = shell.folder / "tools" / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."\nexit 9\n'
    )
    program.chmod(0o755)
    assert "not fit: nvidia-smi: NVIDIA-SMI has failed" in shell.type("check", "--runs", str(runs), code=1)
