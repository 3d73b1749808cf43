"""phenomhpc from Python: submit a job, and hold the run in a hand.

    import phenomhpc
    run = phenomhpc.submit("pretrain", store="store", nodes=2, overrides=["optim.steps=1000"])
    run.wait(); print(run.result().text)

What is raised are the errors of phenomhpc.errors, each with one line for a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phenomhpc.jobs.status import RunStatus
    from phenomhpc.jobs.why import Why
    from phenomhpc.runs import RunPaths

POLL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended well: in words, its exit code (0, or 3 when input was set aside), what was set aside, its report."""

    text: str
    exit_code: int
    set_aside: tuple[tuple[str, str], ...] = ()
    report: str | None = None


@dataclass(frozen=True)
class Run:
    """A run, by its ID and its directory.  It holds nothing else: what it says is read when it is asked."""

    id: str
    root: Path

    @property
    def _paths(self) -> RunPaths:
        from phenomhpc.runs import RunPaths

        return RunPaths(self.root)

    def status(self) -> RunStatus:
        """How far it is; `unknown`, with the reason, while Slurm does not answer."""
        from phenomhpc.jobs.status import tended_status

        return tended_status(self._paths)

    def wait(self, timeout: float | None = None, poll_s: float = POLL_S) -> int:
        """Wait until the run has ended; its exit code.  Raises TimeoutError after `timeout` seconds; the run goes on."""
        from phenomhpc.jobs.submit import until_ended
        from phenomhpc.progress import silent

        return int(until_ended(self._paths, silent(), timeout_s=timeout, poll_s=poll_s)["exit_code"])

    def result(self, timeout: float | None = None, poll_s: float = POLL_S) -> Result:
        """How it ended, once it has (see wait).

        Raises for a run without success: UsageError (wrong settings or input), UnreachableError, else WorkError, which is
        also what a cancelled run raises.
        """
        from phenomhpc.errors import UNREACHABLE, WRONG_USE, UnreachableError, UsageError, WorkError
        from phenomhpc.jobs.submit import until_ended
        from phenomhpc.progress import silent

        outcome = until_ended(self._paths, silent(), timeout_s=timeout, poll_s=poll_s)
        code, message = int(outcome["exit_code"]), str(outcome["message"])
        if outcome["state"] != "finished":
            kinds = {WRONG_USE: UsageError, UNREACHABLE: UnreachableError}
            raise kinds.get(code, WorkError)(f"run {self.id}: {outcome['state']}: {message}")
        aside = tuple((str(thing), str(reason)) for thing, reason in outcome.get("set_aside", ()))
        return Result(text=message, exit_code=code, set_aside=aside, report=outcome.get("report"))

    def why(self, task: int | None = None) -> Why:
        """Why it failed, or how it stands."""
        from phenomhpc.jobs.why import why

        return why(self._paths, task=task)

    def logs(self, task: int | None = None, attempt: int | None = None) -> str:
        """What its tasks (or one) have written, in the newest attempt or another; a pipeline's with its stages'."""
        from phenomhpc.jobs.pipeline import stage_runs
        from phenomhpc.runs import RunPaths

        runs = [self._paths, *(RunPaths(self.root.parent / stage) for stage in stage_runs(self._paths).values())]
        logs = [log for run in runs for log in run.log_files(attempt, task)]
        return "".join(log.read_text(errors="replace") for log in logs)

    def cancel(self) -> str:
        """Cancel it; in words what was done.  What was committed stays."""
        from phenomhpc.jobs.cancel import cancel_run
        from phenomhpc.progress import silent

        return cancel_run(self._paths, silent())


def submit(
    kind: str, *, overrides: Sequence[str] = (), recipe: str | None = None, wait: bool = False, **flags: Any
) -> Run:
    """`phenomhpc submit KIND`: the same flags, with underscores (store=..., nodes=2, time="2h"), the same checks.

    overrides: `key=value` words.  wait: stay until the run has ended; see Run.result for how.
    Raises UsageError for what the cluster would refuse, and for an unknown flag; UnreachableError where there is no Slurm.
    """
    from phenomhpc.cli.prepare import prepare
    from phenomhpc.jobs.submit import submit_run
    from phenomhpc.progress import silent

    settings, own = _split(kind, flags)
    config = prepare(kind, settings, list(overrides), {**own, "recipe": recipe})
    command = ["phenomhpc.submit", kind, *(f"{name}={value}" for name, value in flags.items()), *overrides]
    paths = submit_run(config, command=command, name=own["name"], after=own["after"], progress=silent())
    run = Run(paths.id, paths.root)
    if wait:
        run.wait()
    return run


def runs_in(folder: str | Path = "runs") -> list[Run]:
    """The runs in a folder, oldest first."""
    from phenomhpc.runs import list_runs

    return [Run(paths.id, paths.root) for paths in list_runs(Path(folder).expanduser())]


def _split(kind: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flags as settings by dotted key, and the verb's own values; as the command line splits them."""
    import difflib

    from phenomhpc.cli.job_flags import JOB_FLAGS, SUBMIT_FLAGS
    from phenomhpc.errors import UsageError

    if kind not in JOB_FLAGS:
        raise UsageError(f"submit({kind!r}): no such job; there are {', '.join(JOB_FLAGS)}")
    flags = {flag.parameter: flag for flag in (*JOB_FLAGS[kind], *SUBMIT_FLAGS) if flag.name not in {"dry-run", "wait"}}
    settings: dict[str, Any] = {}
    own: dict[str, Any] = {name: None for name, flag in flags.items() if flag.key is None}
    for name, value in given.items():
        if name not in flags:
            near = difflib.get_close_matches(name, flags, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(flags))}"
            raise UsageError(f"submit({kind!r}, {name}=...): no such flag; {hint}")
        key = flags[name].key
        if key is None:
            own[name] = value
        else:
            settings[key] = _plain(value)
    return settings, own


def _plain(value: Any) -> Any:
    """Paths as text, sequences as lists."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
