"""Scripts that are not ours, on the real cluster: stopped, cut off and broken."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from phenomhpc.runs import RunPaths, read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.test_jobs import LIMIT_S, Shell
from tests.unit.train_store import convert, write_plate

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "lightning_pretrain.py"
# So many that a fast machine has not finished before it is cut off: between two looks it makes some dozens.
STEPS, EVERY = 240, 20


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A person's repository: a Lightning script, one with a fault, one that is easily stopped, and a store that git does not
    track."""
    folder = tmp_path_factory.mktemp("foreign")
    write_plate(folder / "raw")
    convert(folder / "raw", folder / "store", folder / "runs")
    shutil.copy(EXAMPLE, folder / "train.py")
    (folder / "broken.py").write_text("def load(name):\n    return {}[name]\n\nprint('loading')\nload('treatment')\n")
    (folder / "polite.py").write_text(
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "open(os.environ['PHENOMHPC_OUTPUT'] + '/began', 'w').close()\ntime.sleep(600)\n"
    )
    (folder / ".gitignore").write_text("raw\nstore\nruns\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "as submitted"]):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)
    return Shell(cluster, folder)


def losses(run: RunPaths) -> dict[tuple[int, int], dict[int, float]]:
    """Loss by (start, rank) and step, as the script wrote them; a power cut may leave half a line behind."""
    found: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for file in run.output.glob("losses-*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[row["start"], int(file.stem.partition("-")[2])][row["step"]] = row["loss"]
    return found


def test_a_lightning_script_goes_on_after_being_asked_to_stop_and_after_a_power_cut(
    lab: Shell, cluster: Cluster
) -> None:
    sizes = ["--steps", str(STEPS), "--every", str(EVERY), "--batch", "4"]
    command = ["--", "python", "train.py", "--store", "store", *sizes]
    run = lab.submit("run", "--nodes", "2", "--time", "60", *command, wait=False)
    # What lies there later is none of its business.
    (lab.folder / "train.py").write_text("raise SystemExit('this is not what was submitted')\n")
    (job,) = lab.status(run)["jobs"]

    def has_saved(start: int) -> bool:
        return len(losses(run)[start, 0]) > EVERY * 1.5

    wait_until("it has a checkpoint", lambda: has_saved(0), LIMIT_S)
    cluster.run(["scancel", "--signal=USR2", "--batch", job])  # as Slurm does before a limit or a preemption

    def hosts() -> dict[int, str]:
        return {e["task"]: e["host"] for e in read_events(run) if e["event"] == "started" and e["start"] == 1}

    wait_until("it has gone on", lambda: len(hosts()) == 2, LIMIT_S)
    victim = int(hosts()[1].removeprefix("n"))
    wait_until("it has saved another", lambda: has_saved(1), LIMIT_S)
    cluster.power_cut(victim)
    try:
        wait_until("it has ended by itself", lambda: run.outcome.is_file(), LIMIT_S)
    finally:
        cluster.power_on(victim)
    status = lab.status(run)
    assert (status["state"], status["attempt"], status["done"]) == ("finished", 1, 1), status

    seen = losses(run)
    assert sorted(seen) == [(start, rank) for start in (0, 1, 2) for rank in (0, 1)]
    for rank in (0, 1):
        parts = [seen[start, rank] for start in (0, 1, 2)]
        assert sorted({step for part in parts for step in part}) == list(range(STEPS))
        first, after_stop, after_cut = parts
        # Asked, it saves where it is; cut off, it goes back to the last checkpoint.
        assert min(first) == 0 and min(after_stop) == max(first) + 1 and min(after_cut) % EVERY == 0 < min(after_cut)
        for before, after in pairwise(parts):  # what is done again is what it was
            again = before.keys() & after.keys()
            assert {step: before[step] for step in again} == {step: after[step] for step in again}
    assert (run.output / "weights.pt").is_file()

    said = lab.type("why", run.id).stdout
    assert "node_fail on n" in said and "preempted on n" in said and "code_error" not in said
    events = read_events(run)
    assert {event["reason"] for event in events if event["event"] == "preempted"} == {"preempted"}
    assert [event["node"] for event in events if event["event"] == "excluded"] == [f"n{victim}"]
    assert 0 < status["usage"]["core"]["useful"] <= status["usage"]["core"]["used"]
    cluster.wait_idle()


def test_a_script_that_fails_is_explained_by_its_own_traceback(lab: Shell) -> None:
    done = lab.type("submit", "run", "cluster.gate=false", "--wait", "--", "python", "broken.py", check=False)
    assert done.returncode == 1 and "KeyError: 'treatment'" in done.stdout
    said = lab.type("why", "last").stdout
    assert "code_error" in said and "exit code" in said
    assert "broken.py" in said and "return {}[name]" in said and "KeyError: 'treatment'" in said
    assert "loading" in lab.type("logs", "last").stdout

    (lab.folder / "broken.py").write_text("import os\nprint('mended', os.environ['PHENOMHPC_ATTEMPT'])\n")
    run = RunPaths(Path(json.loads(lab.type("status", "last", "--json").stdout)["folder"]))
    lab.type("retry", run.id, "--code", "current")
    wait_until("it has ended again", lambda: run.outcome.is_file(), LIMIT_S)
    assert lab.status(run)["state"] == "finished"
    assert "mended 2" in lab.type("logs", run.id).stdout


def test_a_script_that_answers_sigterm_with_0_has_not_finished(lab: Shell, cluster: Cluster) -> None:
    run = lab.submit("run", "cluster.gate=false", "--", "python", "polite.py", wait=False)
    wait_until("it is at work", lambda: (run.output / "began").is_file(), LIMIT_S)
    cluster.run(["scancel", *lab.status(run)["jobs"]])
    wait_until("it has ended", lambda: run.outcome.is_file(), LIMIT_S)
    assert lab.status(run)["state"] == "cancelled"
    cluster.wait_idle()
