"""Every file name inside a run directory; no other code spells one.

RUNS/ID/
  run.yaml provenance.json outcome.json report.html mlflow.json
      evaluation.json {recall scores perturbations relations blocks map}.parquet pictures/ reconstructions.npz
  code/  attempts/001/{script.sbatch manifest.parquet slurm.json fence fence-TASK stop-TASK gate-START/ rounds-START/
                        parting-START/ nodes/HOST.json outcome.json retry.json code/ code-script/}
  events/ATTEMPT-TASK.jsonl  metrics/ATTEMPT-STEP.parquet  logs/TASK.ATTEMPT.out  done/TASK.json
  validation/{ATTEMPT-STEP.parquet step-STEP.npz step-STEP.png}  probe/ATTEMPT-STEP.parquet  tensorboard/
  checkpoints/step-XXXXXXXX/  embeddings/  output/  code-script/  survey/PLATE.{json,parquet}
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True)
class GatePaths:
    """Names inside attempts/NNN/gate-START/: what the nodes of a gang tell each other before they start."""

    root: Path

    def probe_name(self, task: int) -> str:
        """A file that a node writes, reads back and removes."""
        return f"probe-{task}"

    def node(self, task: int) -> Path:
        """A node's facts and what is wrong with it."""
        return self.root / f"node-{task}.json"

    @property
    def nodes_decision(self) -> Path:
        """Who is fit: written by the first who knows, followed by all."""
        return self.root / "nodes.json"

    @property
    def meeting(self) -> Path:
        """Where the all-reduce meets: the first node's host and port."""
        return self.root / "meeting.json"

    def measured(self, task: int) -> Path:
        """What a node saw of an all-reduce that failed."""
        return self.root / f"measured-{task}.json"

    @property
    def network_decision(self) -> Path:
        return self.root / "network.json"


@dataclass(frozen=True)
class RoundsPaths:
    """Names inside attempts/NNN/rounds-START/: who trains together, round by round, in one start of a gang."""

    root: Path

    def round(self, number: int) -> Path:
        return self.root / f"{number:04d}"

    def wish(self, number: int, rank: int) -> Path:
        """A node's wish to take part in a round, with its addresses and whom it calls lost."""
        return self.round(number) / f"node-{rank}.json"

    def members(self, number: int) -> Path:
        """Who takes part: written by the first who knows, followed by all; it fences every round before."""
        return self.round(number) / "members.json"

    @property
    def closed(self) -> Path:
        """No further round: which node said so, and why."""
        return self.root / "closed.json"

    @property
    def requeue(self) -> Path:
        """Asks the batch script to requeue the job, though not every node of it was able to say so."""
        return self.root / "requeue"


@dataclass(frozen=True)
class AttemptPaths:
    """Names inside attempts/NNN/: immutable once submitted, but for the fences and stop files."""

    root: Path

    @property
    def number(self) -> int:
        return int(self.root.name)

    @property
    def script(self) -> Path:
        return self.root / "script.sbatch"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    @property
    def slurm(self) -> Path:
        return self.root / "slurm.json"

    @property
    def submitit(self) -> Path:
        """submitit's own folder: every script as it was submitted, by job id."""
        return self.root / "submitit"

    @property
    def outcome(self) -> Path:
        """How the run had ended with this attempt, before it was retried."""
        return self.root / "outcome.json"

    @property
    def retry(self) -> Path:
        """What was asked for when the run was retried after this attempt."""
        return self.root / "retry.json"

    @property
    def code(self) -> Path:
        """The code that the attempts after this one import, where a retry brought its own."""
        return self.root / "code"

    @property
    def script_code(self) -> Path:
        """The tree of a foreign script as a retry brought it (--code current)."""
        return self.root / "code-script"

    @property
    def fence(self) -> Path:
        """The attempt's 128-bit token, written when it is made."""
        return self.root / "fence"

    def start_fence(self, task: int) -> Path:
        """Number of the newest start of a task: a requeued task claims it, an older start then finds itself fenced."""
        return self.root / f"fence-{task}"

    @property
    def nodes(self) -> Path:
        """Fingerprints of the nodes that took part."""
        return self.root / "nodes"

    def node(self, host: str) -> Path:
        """One node's."""
        return self.nodes / f"{host}.json"

    def gate(self, start: int) -> GatePaths:
        """The gate of one start of a gang (Slurm's restart count)."""
        return GatePaths(self.root / f"gate-{start}")

    def rounds(self, start: int) -> RoundsPaths:
        """The rounds of one start of a gang (Slurm's restart count)."""
        return RoundsPaths(self.root / f"rounds-{start}")

    def parting(self, start: int) -> Path:
        """Folder of how a foreign script has ended on each node of one start: TASK.json."""
        return self.root / f"parting-{start}"

    def stop_file(self, task: int) -> Path:
        """Its presence asks a task to commit and leave at the next boundary."""
        return self.root / f"stop-{task}"


@dataclass(frozen=True)
class RunPaths:
    """Names inside one run directory."""

    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def run_yaml(self) -> Path:
        return self.root / "run.yaml"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def outcome(self) -> Path:
        """Written once, when the run as a whole has ended."""
        return self.root / "outcome.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by a process that runs the job here, so that a second one does not."""
        return self.root / "lock"

    @property
    def steward_lock(self) -> Path:
        return self.root / "steward.lock"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def reconstructions(self) -> Path:
        """npz: original, masked, reconstructed f32 [n, C, h, w] of fixed crops after the last step."""
        return self.root / "reconstructions.npz"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def recall(self) -> Path:
        """Parquet: one row per annotation, threshold and source of embeddings."""
        return self.root / "recall.parquet"

    @property
    def map(self) -> Path:
        """Parquet: label, num_wells, and the profile of each as feature_0000 ... f64."""
        return self.root / "map.parquet"

    @property
    def relations(self) -> Path:
        """Parquet: annotation, first, second: the known pairs with both ends in the map."""
        return self.root / "relations.parquet"

    @property
    def scores(self) -> Path:
        """Parquet: one row per number of every benchmark, with its threshold, null and interval."""
        return self.root / "scores.parquet"

    @property
    def perturbations(self) -> Path:
        """Parquet: one row per perturbation of the map, with its own consistency, magnitude and retrieval."""
        return self.root / "perturbations.parquet"

    @property
    def blocks(self) -> Path:
        """Parquet: one row per block that was probed."""
        return self.root / "blocks.parquet"

    @property
    def pictures(self) -> Path:
        """The report's pictures as NAME.png and NAME.svg."""
        return self.root / "pictures"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def script_code(self) -> Path:
        """The tree of a foreign script as it was submitted."""
        return self.root / "code-script"

    @property
    def output(self) -> Path:
        """A foreign script's own folder, kept over all attempts."""
        return self.root / "output"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeddings"

    @property
    def surveys(self) -> Path:
        """What a conversion found of its plates before it converted them."""
        return self.root / "survey"

    def survey(self, plate: str) -> Path:
        return self.surveys / f"{plate}.json"

    def declared(self, plate: str) -> Path:
        """The plate as its layout declares it."""
        return self.surveys / f"{plate}.parquet"

    def surveyed(self) -> list[str]:
        """Keys of the plates that were surveyed, sorted."""
        if not self.surveys.is_dir():
            return []
        return sorted(
            entry.name.removesuffix(".json") for entry in self.surveys.iterdir() if entry.name.endswith(".json")
        )

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    @property
    def validation(self) -> Path:
        return self.root / "validation"

    def validation_file(self, attempt: int, step: int) -> Path:
        return self.validation / f"{attempt:03d}-{step:08d}.parquet"

    def validation_crops(self, step: int) -> Path:
        """npz, and a png beside it: original, masked, reconstructed f32 [n, C, h, w] of fixed held-out crops after a step."""
        return self.validation / f"step-{step:08d}.npz"

    @property
    def tensorboard(self) -> Path:
        """Event files, of all attempts."""
        return self.root / "tensorboard"

    @property
    def mlflow(self) -> Path:
        """Which MLflow run has this run's figures, over all attempts."""
        return self.root / "mlflow.json"

    @property
    def probe(self) -> Path:
        return self.root / "probe"

    def probe_file(self, attempt: int, step: int) -> Path:
        return self.probe / f"{attempt:03d}-{step:08d}.parquet"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def done(self) -> Path:
        return self.root / "done"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def committed_step(self) -> int:
        """The newest committed checkpoint's step, by its mark; 0 where there is none.  (What is in it: models.checkpoint.)"""
        marks = self.checkpoints.glob("step-*/COMMITTED") if self.checkpoints.is_dir() else ()
        return max((int(mark.parent.name.partition("-")[2]) for mark in marks), default=0)

    def saved(self) -> str:
        """What changes with everything that a foreign script saves below checkpoints/, or where it uses that not, output/; empty
        while there is nothing."""
        return _files_below(self.checkpoints) or _files_below(self.output)

    def attempt(self, number: int) -> AttemptPaths:
        return AttemptPaths(self.attempts / f"{number:03d}")

    def last_attempt(self) -> int:
        """Number of the newest attempt; 0 when there is none."""
        if not self.attempts.is_dir():
            return 0
        return max((int(entry.name) for entry in self.attempts.iterdir() if entry.name.isdigit()), default=0)

    def events_file(self, attempt: int, task: int) -> Path:
        return self.events / f"{attempt:03d}-{task:05d}.jsonl"

    def metrics_file(self, attempt: int, step: int) -> Path:
        return self.metrics / f"{attempt:03d}-{step:08d}.parquet"

    def log_file(self, task: int | str, attempt: int) -> Path:
        """Log of a task; `task` may be a Slurm pattern such as %a or %t."""
        return self.logs / f"{task}.{attempt:03d}.out"

    def log_names(self, num_tasks: int, attempt: int) -> list[str]:
        """The logs of tasks 0.. as text: one path less to take apart for each of a hundred thousand."""
        folder = str(self.logs)
        return [f"{folder}/{task}.{attempt:03d}.out" for task in range(num_tasks)]

    def log_files(self, attempt: int | None = None, task: int | None = None) -> list[Path]:
        """Logs of an attempt (default: the newest) that were written: tasks by number, then the batch scripts' and the steward's.

        task: only that one's.
        """
        attempt = self.last_attempt() if attempt is None else attempt
        if task is not None:
            log = self.log_file(task, attempt)
            return [log] if log.is_file() else []
        found = self.logs.glob(f"*.{attempt:03d}.out") if self.logs.is_dir() else ()
        return sorted(found, key=lambda log: (not log.name.split(".")[0].isdigit(), len(log.name), log.name))

    def done_file(self, task: int) -> Path:
        return self.done / f"{task}.json"


def _files_below(folder: Path) -> str:
    """How many files, their bytes and the newest's time, in words; empty where there is none."""
    stats = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # replaced while it was looked at
            stats += [path.stat()] if path.is_file() else []
    if not stats:
        return ""
    newest = datetime.fromtimestamp(max(stat.st_mtime for stat in stats), UTC)
    size = sum(stat.st_size for stat in stats)
    return f"{len(stats)} file(s) of {size} bytes, the newest of {newest:%Y-%m-%d %H:%M:%S.%f} UTC"
