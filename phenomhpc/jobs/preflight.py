"""Everything that can be refused is found before anything is made: all of it at once, one line each.

settings of the cluster -> folders -> the job's own plan -> space -> sbatch --test-only -> Prepared, or one UsageError
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phenomhpc.config import (
    AnyConfig,
    ConvertConfig,
    EmbedConfig,
    EvaluateConfig,
    PretrainConfig,
    RechunkConfig,
    RunConfig,
)
from phenomhpc.errors import UsageError
from phenomhpc.jobs.attempts import exclusions, is_gang, submission_of, units_of
from phenomhpc.jobs.base import ArrayPlan, GangPlan, Plan, load
from phenomhpc.jobs.folders import folders_of
from phenomhpc.jobs.script_code import tree_of
from phenomhpc.runs import PACKAGE, RunPaths, changed_files
from phenomhpc.slurm.container import problem_of
from phenomhpc.slurm.facts import ClusterFacts
from phenomhpc.slurm.plan import Submission
from phenomhpc.slurm.refuse import ask_sbatch, problems_of
from phenomhpc.slurm.render import render

# File systems that one machine has for itself, unless it serves them to others.
LOCAL_TYPES = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "overlay", "tmpfs", "ramfs"})
GIB = 2**30
UNTRIED = (
    "cluster.container: scripts with a container are tested as text and were never run in one; look at --dry-run first"
)


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a run is expected to write, and what is free where it writes, bytes."""

    folder: Path
    output_bytes: int
    free_bytes: int

    @property
    def words(self) -> str:
        return f"about {_gib(self.output_bytes)} of output, {_gib(self.free_bytes)} are free in {self.folder}"

    @property
    def problem(self) -> str | None:
        if self.output_bytes <= self.free_bytes:
            return None
        figures = f"the output is estimated at {_gib(self.output_bytes)}, {_gib(self.free_bytes)} are free"
        return f"{self.folder}: {figures}; make room, or choose another folder"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that nothing speaks against, as it would be submitted.  plan: None where it cannot be made yet (--after)."""

    config: AnyConfig
    plan: Plan | None
    submission: Submission
    space: Space | None = None
    warnings: tuple[str, ...] = ()


def prepare(
    config: AnyConfig, facts: ClusterFacts | None, paths: RunPaths, *, planned: bool = True, light: bool = False
) -> Prepared:
    """Look at all of a run.  planned: its input is there already; light: the input of a training, which takes torch to
    read, is not looked at (a dry run).

    Raises UsageError listing every problem, UnreachableError when Slurm does not answer.  Makes nothing.
    """
    nodes = config.cluster.nodes if is_gang(config) else 1
    problems = problems_of(config.cluster, nodes, facts) if facts else []
    fits = not problems
    contained = problem_of(config.cluster)
    problems += [contained] if contained else []
    if config.cluster.container and config.cluster.elastic:
        problems.append(
            f"--nodes {config.cluster.min_nodes}:{nodes}: the nodes of an elastic gang ask Slurm who is left, and images "
            f"rarely have its client; with cluster.container give --nodes {nodes}"
        )
    problems += [*_of_code(config), *folder_problems(config, paths)]
    plan: Plan | None = GangPlan(num_nodes=nodes) if is_gang(config) else None
    if planned and light and isinstance(config, PretrainConfig):
        problems += _of_training(config)
    elif planned:
        try:
            plan = load(config.kind).plan(config, paths)
        except UsageError as error:
            problems.append(str(error))
    space = space_of(config, plan, paths)
    if space is not None and space.problem:
        problems.append(space.problem)
    submission = None
    if fits:
        num_tasks = units_of(plan, config).num_tasks if plan is not None else 1
        submission = submission_of(config, paths, 1, facts, num_tasks, exclusions(config, facts))
        if facts is not None and submission.chunks:
            said = ask_sbatch(paths.id, render(submission, submission.chunks[0]))
            problems += [said] if said else []
    if problems or submission is None:
        raise refusal_of(problems)
    return Prepared(
        config=config, plan=plan, submission=submission, space=space, warnings=_warnings(config, facts, paths)
    )


def refusal_of(problems: Sequence[str]) -> UsageError:
    """One error of all problems: a line each."""
    lines = list(dict.fromkeys(problems))
    if len(lines) == 1:
        return UsageError(lines[0])
    return UsageError("\n  ".join([f"{len(lines)} problems, nothing was submitted:", *lines]))


def _of_training(config: PretrainConfig) -> list[str]:
    """What is seen of a training without torch."""
    from phenomhpc.jobs.pretrain import require_backend
    from phenomhpc.train.tracking import require_tracking

    absent = [
        f"store {store}: does not exist; phenomhpc convert makes one"
        for store in config.store
        if not Path(store).is_dir()
    ]
    try:
        require_backend(config)
        require_tracking(config)
    except UsageError as error:
        absent.append(str(error))
    return absent


def _of_code(config: AnyConfig) -> list[str]:
    """With cluster.require_clean: trees whose code differs from their last commit."""
    if not config.cluster.require_clean:
        return []
    trees = [PACKAGE.parent] if (PACKAGE.parent / ".git").exists() else []
    if isinstance(config, RunConfig) and (tree := tree_of(Path(config.workdir))) is not None:
        trees.append(tree.root)
    return [
        f"--require-clean: {tree} has changes that are not committed ({_few(names)}); commit them, or leave the flag out"
        for tree in dict.fromkeys(trees)
        if (names := changed_files(tree))
    ]


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# -- folders ----------------------------------------------------------------------------------------------------------


def existing(path: Path) -> Path:
    """A path, or the nearest of its parents that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def folder_problems(config: AnyConfig, paths: RunPaths) -> list[str]:
    """What keeps a run from writing where it was told to, seen from here."""
    written = {"runs", "out", "to", *(["store"] if isinstance(config, ConvertConfig) else [])}
    found = []
    for name, path in folders_of(config, paths).items():
        there = existing(path)
        if name in written and not there.is_dir():
            found.append(f"{name}={path}: {there} is no folder; choose another")
        elif name in written and not os.access(there, os.W_OK | os.X_OK):
            found.append(f"{name}={path}: {there} is not writable for you; choose another")
    return found


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system that a path lies on; mounts: the text of /proc/self/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, mounted, name, *_ = line.split(" ")
        mounted = mounted.replace("\\040", " ")
        inside = path == Path(mounted) or Path(mounted) in path.parents
        if inside and len(mounted) >= len(best):
            best, kind = mounted, name
    return kind


def _warnings(config: AnyConfig, facts: ClusterFacts | None, paths: RunPaths) -> tuple[str, ...]:
    return (*_of_local_disks(config, facts, paths), *([UNTRIED] if config.cluster.container else []))


def _of_local_disks(config: AnyConfig, facts: ClusterFacts | None, paths: RunPaths) -> tuple[str, ...]:
    partition = facts.partition(config.cluster.partition) if facts else None
    if partition is None or partition.num_nodes < 2:
        return ()
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return ()
    local = {
        name: kind
        for name, path in {**folders_of(config, paths), **_environment(config)}.items()
        if (kind := file_system_of(path, mounts)) in LOCAL_TYPES
    }
    if not local:
        return ()
    words = ", ".join(f"{name} ({kind})" for name, kind in local.items())
    return (
        f"seen from {socket.gethostname()}, {words} may lie on a disk of this machine alone; "
        "a task that does not see its folders says so and ends",
    )


def _environment(config: AnyConfig) -> dict[str, Path]:
    """The Python that the tasks are started with; a container brings its own."""
    return {} if config.cluster.container else {f"Python ({sys.prefix})": Path(sys.prefix)}


def invisible(config: AnyConfig, paths: RunPaths) -> list[str]:
    """Folders that a task needs and does not see on its node, one sentence each."""
    read = [Path(config.store)] if isinstance(config, EmbedConfig | RechunkConfig) else []
    read += [Path(store) for store in config.store] if isinstance(config, PretrainConfig) else []
    if isinstance(config, EvaluateConfig):
        read += [Path(config.embeddings), Path(config.annotations)]
        read += [Path(table) for table in config.tables]
    read += [Path(config.onnx)] if isinstance(config, EmbedConfig) and config.onnx else []
    if isinstance(config, ConvertConfig):
        read += [Path(plates) for plates in config.plates if not set("*?[") & set(plates)]
    return [f"{path}: is not there on {socket.gethostname()}" for path in read if not path.exists()]


# -- space ------------------------------------------------------------------------------------------------------------


def space_of(config: AnyConfig, plan: Plan | None, paths: RunPaths) -> Space | None:
    """The space a run needs and finds; None where nothing can be said."""
    if isinstance(config, PretrainConfig):
        from phenomhpc.jobs.pretrain import output_bytes

        folder, needed = paths.root.parent, output_bytes(config)
    elif isinstance(plan, ArrayPlan) and plan.output_bytes is not None:
        named = folders_of(config, paths)
        written = "store" if isinstance(config, ConvertConfig) else "to" if isinstance(config, RechunkConfig) else "out"
        folder = named.get(written, named["runs"])
        needed = plan.output_bytes
    else:
        return None
    there = existing(folder.absolute())
    return Space(folder=folder, output_bytes=needed, free_bytes=shutil.disk_usage(there).free)


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 100 else f"{size / 2**20:.3g} MiB"


# -- in words ---------------------------------------------------------------------------------------------------------


def describe(prepared: Prepared) -> list[str]:
    """The plan, one sentence a line."""
    config, plan, submission = prepared.config, prepared.plan, prepared.submission
    if isinstance(plan, ArrayPlan):
        done = f", {plan.num_done} are done already" if plan.num_done else ""
        then = f", then {plan.following}" if plan.following else ""
        what = f"{len(plan.units)} {plan.noun}{done}: {_arrays(submission)}{then}"
    else:
        what = f"one job of {submission.num_nodes} node(s), a task on each"
    gpus = f", {config.cluster.gpus_per_node} GPU(s) per node" if config.cluster.gpus_per_node else ""
    lines = [f"{config.kind}: {what}{gpus}; {_hours(submission)}"]
    lines += _costs(config) if isinstance(config, PretrainConfig) else []
    return lines + ([prepared.space.words] if prepared.space else [])


def _costs(config: PretrainConfig) -> list[str]:
    """What a training costs; nothing where its store is not there yet."""
    from phenomhpc.crops.corpus import Corpus
    from phenomhpc.jobs.train_estimate import line_of, of_corpus

    try:
        return [line_of(of_corpus(config, Corpus.open(config.store, config.snapshot)))]
    except UsageError:
        return []


def _arrays(submission: Submission) -> str:
    if not submission.num_tasks:
        return "nothing is left to do"
    chunks = submission.chunks
    words = f"{submission.num_tasks} task(s) in {len(chunks)} array(s) of Slurm, one node each"
    first = min(len(chunks), submission.window.in_flight)
    tasks = sum(chunk.size for chunk in chunks[:first])
    return words if first == len(chunks) else f"{words}; {first} array(s) of {tasks} task(s) at first"


def _hours(submission: Submission) -> str:
    minutes = submission.cluster.time_minutes
    if minutes is None:
        return "no time limit asked for"
    cpus = submission.num_tasks * (submission.cpus_per_task or 1) * minutes / 60
    told = f"{cpus:g} CPU hours{'' if submission.cpus_per_task else ' (at one CPU a task)'}"
    gpus = f"{submission.gpu_hours:g} GPU hours and " if submission.gpu_hours else ""
    return f"{gpus}{told} asked for at most"
