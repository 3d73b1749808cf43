"""Fences: a process that a newer attempt, or a newer start of its own task, has replaced must write nothing more."""

from __future__ import annotations

import os
from pathlib import Path

from phenomhpc.commit import commit, new_token
from phenomhpc.errors import FencedError
from phenomhpc.runs.paths import RunPaths


def open_attempt(paths: RunPaths) -> tuple[int, str]:
    """Make the next attempt's folder and token.  Of two that try at once, one gets the number and the other the next."""
    while True:
        number = paths.last_attempt() + 1
        attempt = paths.attempt(number)
        attempt.root.parent.mkdir(parents=True, exist_ok=True)
        try:
            attempt.root.mkdir(mode=0o750)
        except FileExistsError:
            continue
        token = new_token()
        commit(attempt.fence, token)
        return number, token


def attempt_token(paths: RunPaths, attempt: int) -> str:
    """The token of an attempt."""
    return paths.attempt(attempt).fence.read_text()


def _newest_start(path: Path) -> tuple[int, str]:
    """Number of the newest start and the job that claimed it; (-1, "") where there was none."""
    try:
        number, _, job = path.read_text().partition(" ")
    except FileNotFoundError:
        return -1, ""
    return int(number), job


def _token(attempt: str, start: int, job: str) -> str:
    return f"{attempt}.{start}-{job}" if job else f"{attempt}.{start}"


def claim_start(paths: RunPaths, attempt: int, task: int, start: int, job: str = "") -> str:
    """Claim start number `start` (Slurm's restart count) of a task for a job; returns this start's token.

    Raises FencedError when a newer start or attempt has it already, or another job the same one: a task that was submitted
    twice, by a submitter that was killed before it could write down the first, runs once.
    """
    fence = paths.attempt(attempt).start_fence(task)
    newest, holder = _newest_start(fence)
    if newest < start:
        commit(fence, f"{start} {job}" if job else str(start))
    elif newest == start and holder != job:
        raise FencedError(f"run {paths.id}: task {task} runs as job {holder or '(here)'}; job {job or '(here)'} leaves")
    token = _token(attempt_token(paths, attempt), start, job)
    check_fence(paths, attempt, task, token)
    return token


def check_fence(paths: RunPaths, attempt: int, task: int, token: str) -> None:
    """Raise FencedError unless `token` is that of the newest start of the newest attempt."""
    newest = paths.last_attempt()
    if newest != attempt:
        raise FencedError(f"run {paths.id}: attempt {newest} has replaced attempt {attempt}; pid {os.getpid()} leaves")
    expected = _token(attempt_token(paths, attempt), *_newest_start(paths.attempt(attempt).start_fence(task)))
    if token != expected:
        raise FencedError(f"run {paths.id}: task {task} was started anew elsewhere; pid {os.getpid()} leaves")
