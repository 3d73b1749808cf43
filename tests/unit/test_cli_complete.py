"""Shell completion: a real bash with the script that `--show-completion` prints; the scripts of the other shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phenomhpc.config import ConvertConfig, dump
from phenomhpc.runs import create_run

# What readline does at TAB: the function that `complete` has bound to the command, with the words so far.
PRESS_TAB = """
eval "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
$(complete -p phenomhpc | sed 's/.* -F \\([^ ]*\\) .*/\\1/') phenomhpc
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, and a `phenomhpc` on the path."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "bin").mkdir()
    command = folder / "bin" / "phenomhpc"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m phenomhpc "$@"\n')
    command.chmod(0o755)
    for name in ("screen-1", "screen-2"):
        create_run(folder / "runs", "convert", dump(ConvertConfig(store="s", plates=("p",))), {}, name=name)
    (folder / "runs" / "no-run").mkdir()
    return folder


def environment(shell: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{shell / 'bin'}:{os.environ['PATH']}", "HOME": str(shell)}


def script_of(shell: Path, name: str) -> str:
    """As the person's shell, `name`, is told."""
    words = ["phenomhpc", "--show-completion", name]
    told = {**environment(shell), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    return subprocess.run(words, env=told, cwd=shell, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def bash(shell: Path) -> str:
    return script_of(shell, "bash")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["phenomhpc", "sta"], {"status"}),
        (["phenomhpc", "status", "screen"], {"screen-1", "screen-2"}),
        (["phenomhpc", "why", "screen-2"], {"screen-2"}),
        (["phenomhpc", "cancel", "l"], {"last"}),
        (["phenomhpc", "retry", ""], {"screen-1", "screen-2", "last"}),
        (["phenomhpc", "logs", "--runs", "elsewhere", ""], set()),
        (["phenomhpc", "submit", "pre"], {"pretrain"}),
        (["phenomhpc", "submit", "embed", "--checkpoint", "screen-1"], {"screen-1"}),
        (["phenomhpc", "submit", "pretrain", "--recipe", "pre"], {"pretrain"}),
        (["phenomhpc", "submit", "pretrain", "--require"], {"--require-clean"}),
    ],
)
def test_bash_offers_what_fits(shell: Path, bash: str, words: list[str], offered: set[str]) -> None:
    argv = ["bash", "--norc", "-c", PRESS_TAB, "bash", *words]
    done = subprocess.run(
        argv, env={**environment(shell), "SCRIPT": bash}, cwd=shell, capture_output=True, text=True, timeout=60
    )
    assert set(done.stdout.split()) == offered, done.stderr


def test_settings_are_offered_by_group(shell: Path, bash: str) -> None:
    argv = ["bash", "--norc", "-c", PRESS_TAB, "bash", "phenomhpc", "submit", "pretrain", "optim"]
    done = subprocess.run(
        argv, env={**environment(shell), "SCRIPT": bash}, cwd=shell, capture_output=True, text=True, timeout=60
    )
    assert {"optim=lion", "optim=adamw"} <= set(done.stdout.split())


@pytest.mark.parametrize(("name", "sign"), [("zsh", "compdef"), ("fish", "complete --command phenomhpc")])
def test_the_other_shells_have_their_scripts(shell: Path, name: str, sign: str) -> None:
    assert sign in script_of(shell, name)


def test_a_key_press_imports_nothing_heavy(shell: Path) -> None:
    code = (
        "import sys\nfrom phenomhpc.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    print([name for name in ('torch', 'zarr', 'polars', 'submitit', 'hydra') if name in sys.modules], file=sys.stderr)"
    )
    asked = {"_PHENOMHPC_COMPLETE": "complete_bash", "COMP_WORDS": "phenomhpc\nstatus\nscreen", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(shell), **asked},
        cwd=shell,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.strip() == "[]" and "screen-1" in done.stdout
