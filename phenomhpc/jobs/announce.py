"""Telling a person that a run has ended, once per run and not per array task: mail by Slurm, and a command of one's own.

Neither can fail a run: what goes wrong is an event of it (`announced`), with the words.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from phenomhpc.config import AnyConfig
from phenomhpc.errors import PhenomError
from phenomhpc.jobs.attempts import STEWARD_TASK, submission_of
from phenomhpc.runs import EventWriter, RunPaths, make_folder
from phenomhpc.slurm.facts import discover
from phenomhpc.slurm.render import render_notice, wants_mail

EVENT = "announced"
# A command that takes longer is ended: the steward has a time limit too.
COMMAND_LIMIT_S = 300


def announce(paths: RunPaths, config: AnyConfig, outcome: Mapping[str, Any]) -> None:
    """Say that a run has ended, as cluster.on_end and cluster.mail_type ask for; a cancelled one only by mail."""
    state, code = str(outcome["state"]), int(outcome["exit_code"])
    if config.cluster.on_end and state != "cancelled":
        words = _run_command(config.cluster.on_end, paths, environment_of(paths, config, outcome))
        _emit(paths, how="on_end", state=state, problem=words)
    if wants_mail(config.cluster.mail_type, failed=code != 0):
        try:
            _mail(paths, config, code)
        except PhenomError as error:
            _emit(paths, how="mail", state=state, problem=str(error))
        else:
            _emit(paths, how="mail", state=state, problem=None)


def environment_of(paths: RunPaths, config: AnyConfig, outcome: Mapping[str, Any]) -> dict[str, str]:
    """What the command is told, beside the steward's own environment."""
    return {
        "PHENOMHPC_RUN": paths.id,
        "PHENOMHPC_RUN_DIR": str(paths.root),
        "PHENOMHPC_KIND": config.kind,
        "PHENOMHPC_STATE": str(outcome["state"]),
        "PHENOMHPC_EXIT_CODE": str(outcome["exit_code"]),
        "PHENOMHPC_MESSAGE": str(outcome["message"]),
    }


def _run_command(command: str, paths: RunPaths, told: Mapping[str, str]) -> str | None:
    """Run a command of the person's shell in the run directory; what went wrong, or None."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=paths.root,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {COMMAND_LIMIT_S} s"
    except OSError as error:
        return str(error)
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return f"exit code {done.returncode}{f': {last[0]}' if last else ''}" if done.returncode else None


def _mail(paths: RunPaths, config: AnyConfig, code: int) -> None:
    from phenomhpc.slurm.executor import submit_script

    attempt = max(1, paths.last_attempt())
    submission = submission_of(config, paths, attempt, discover())
    folder = paths.attempt(attempt).submitit
    make_folder(folder)
    submit_script(paths.id, folder, render_notice(submission, code))


def _emit(paths: RunPaths, **fields: Any) -> None:
    EventWriter(paths, max(1, paths.last_attempt()), STEWARD_TASK, "").emit(EVENT, **fields)
