"""What a job is: the seam between the domain and whatever runs it, here or on Slurm."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from phenomhpc.errors import DONE, SET_ASIDE

if TYPE_CHECKING:
    from phenomhpc.progress import Progress
    from phenomhpc.runs import RunPaths, TaskContext, Unit

KINDS = ("convert", "rechunk", "pretrain", "embed", "evaluate", "run")
# What Unit.count counts, by the kind of unit, where that is more than the units themselves.
COUNTED = {"convert": "fields", "rechunk": "fields", "embed": "crops"}
# A word with a number in it: a file, a size.  JPEG 2000 is a name.
_VARIES = re.compile(r"(?<!\S)(?<!JPEG )\S*\d\S*")


def kind_of_reason(reason: str) -> str:
    """Why something was set aside, without what differs from file to file: to count those of a kind."""
    return _VARIES.sub("...", reason)


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """Independent units.  `units` are those still to be done (millions of them as Units); `num_done` were found complete.

    set_aside: (thing, reason) of input that no unit can be made of.  output_bytes: what the units, and those of the stages
    after them, are expected to write.  following: the units of the stage after this one, in words; "": there is none.
    """

    units: Sequence[Unit]
    num_done: int = 0
    noun: str = "units"
    set_aside: tuple[tuple[str, str], ...] = ()
    output_bytes: int | None = None
    following: str = ""


@dataclass(frozen=True, kw_only=True)
class GangPlan:
    """One task per node, all of them together or none."""

    num_nodes: int
    noun: str = "steps"


Plan = ArrayPlan | GangPlan


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """What one task did: units completed and (thing, reason) of inputs set aside."""

    units_done: int = 0
    set_aside: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A small table for a person, or for --json."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.  `text` in plain words; `report` a page to look at; exit code 3 when input was set aside."""

    text: str
    set_aside: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    report: str | None = None

    @property
    def exit_code(self) -> int:
        return SET_ASIDE if self.set_aside else DONE


class JobModule(Protocol):
    """One file of jobs/.  plan and finish run once, on a login node or here; run wherever a task runs."""

    def plan(self, config: Any, paths: RunPaths) -> Plan:
        """What is to be done.  Raises UsageError before anything is started."""

    def run(self, config: Any, ctx: TaskContext) -> TaskOutcome:
        """Do one task's units (or one node's part of a gang); each unit commits its own completion."""

    def finish(self, config: Any, paths: RunPaths, progress: Progress) -> Summary:
        """Once, after all tasks: seal, report.  Idempotent.  Raises WorkError when the whole is no success."""

    def workers(self, config: Any, units: Sequence[Unit]) -> int:
        """How many processes share the units of a run here."""


def begin(config: Any, paths: RunPaths, *, anew: bool = False) -> None:
    """Let a job note in the run's folder what it plans from, where it does so.  anew: what it noted before may be outdated."""
    module = load(config.kind)
    if hasattr(module, "begin"):
        module.begin(config, paths, anew=anew)


def has_next_stage(kind: str, unit_kind: str | None) -> bool:
    """Does another stage of a job follow when the units of this kind are done?  None: there were no units."""
    stages = getattr(load(kind), "STAGES", ())
    return unit_kind in stages[:-1]


def load(kind: str) -> JobModule:
    """The module of a job kind."""
    return cast(JobModule, importlib.import_module(f"phenomhpc.jobs.{kind}"))
