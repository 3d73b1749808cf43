"""Each class of failure provoked for real; what is decided, that the result is complete, and that the run names it right.

Whoever submitted has logged out.  Scenarios that leave nodes alone run at the same time; then those that cut nodes off.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from phenomhpc.config import load_run_config
from phenomhpc.runs import Event, RunPaths, read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.cluster.memory import MemoryGroups
from tests.slurm.provoking import LIMIT_S, Crew, Lab, crew_of, make_lab, number_of, of_kind


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of a scenario: its run, the outcome, and what only the scenario saw."""

    run: RunPaths
    outcome: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


Scenario = Callable[[Lab], Seen]
CALM: dict[str, Scenario] = {}
HARM: dict[str, Scenario] = {}


def scenario(table: dict[str, Scenario]) -> Callable[[Scenario], Scenario]:
    """Enter a scenario; `test_NAME...` are the tests that ask what became of it."""

    def enter(function: Scenario) -> Scenario:
        table[function.__name__.removeprefix("provoke_")] = function
        return function

    return enter


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(cluster, tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def provoked(lab: Lab, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Seen]]]:
    """Every scenario that a test asks for, running or done."""
    names = [item.name for item in request.session.items if item.path == request.path]

    def wanted(table: dict[str, Scenario]) -> dict[str, Scenario]:
        return {key: what for key, what in table.items() if any(name.startswith(f"test_{key}_") for name in names)}

    with ThreadPoolExecutor(max_workers=len(CALM) + len(HARM)) as pool:
        futures = {key: pool.submit(what, lab) for key, what in wanted(CALM).items()}
        calm = list(futures.values())

        def after_calm(what: Scenario) -> Seen:
            for future in calm:
                future.exception()
            return what(lab)

        futures |= {key: pool.submit(after_calm, what) for key, what in wanted(HARM).items()}
        yield futures
    lab.cluster.wait_idle()
    lab.cluster.ledger.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _forgiven() -> None:
    """Scenarios go on behind the tests: what they exclude is forgotten with the last of them, not behind each test."""


def crew(lab: Lab, run: RunPaths, node: int) -> Crew:
    """The run's processes on a node, once they work."""
    found: list[Crew] = []

    def there() -> bool:
        seen = crew_of(lab.cluster, run, node)
        found.extend([seen] if seen else [])
        return bool(found)

    wait_until(f"{run.id} works on n{node}", there, LIMIT_S)
    return found[0]


def decisions(run: RunPaths) -> list[tuple[str, list[str]]]:
    """What the steward decided, oldest first, and over which classes."""
    return [(event["action"], sorted(event.get("classes", ()))) for event in of_kind(run, "decided")]


def classes(run: RunPaths) -> list[str]:
    """The classes under which the run's tasks reported their ends, oldest first."""
    return [str(event["class"]) for event in of_kind(run, "failed")]


def why(lab: Lab, run: RunPaths) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(lab.type("why", run.id, "--json").stdout)
    return value


def check_trained(lab: Lab, seen: Seen, steps: int) -> None:
    """All steps are in the newest checkpoint, and status says so."""
    assert (seen.outcome["state"], seen.outcome["exit_code"]) == ("finished", 0), seen.outcome
    assert seen.run.committed_step() == steps
    status = lab.status(seen.run)
    assert (status["state"], status["done"], status["total"]) == ("finished", steps, steps)


# -- oom --------------------------------------------------------------------------------------------------------------

# More than the programs need (about 105), less than with a field of 145 MB.
OOM_MB, OOM_PX, OOM_CHANNELS = 160, 6016, 4


@scenario(CALM)
def provoke_oom(lab: Lab) -> Seen:
    plate = lab.folder / "raw-large" / "BIG-01" / "Plate1"
    plate.mkdir(parents=True)
    field = np.tile(np.arange(256, dtype=np.uint8), (OOM_PX, OOM_PX // 256 + 1))[:, :OOM_PX]
    for channel in range(1, OOM_CHANNELS + 1):
        (plate / f"A01_s1_w{channel}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(field), level=1))
    run = lab.convert(f"cluster.mem_mb={OOM_MB}", "cluster.exclude=[n4]", plates=plate.parents[1])
    return Seen(run=run, outcome=lab.ended(run))


def test_oom_gets_more_memory_and_is_done(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    if not MemoryGroups(lab.cluster.root).exist:
        pytest.skip("no memory cgroups that are ours to write: test_over_memory.py has what Slurm does then")
    seen = provoked["oom"].result()
    assert (seen.outcome["state"], seen.outcome["exit_code"]) == ("finished", 0), seen.outcome
    made = decisions(seen.run)
    assert made[:-1] in ([("more_memory", ["oom"])], [("more_memory", ["oom"])] * 2), made
    asked = [event["mem_mb"] for event in of_kind(seen.run, "submitted")]
    assert asked == [OOM_MB * 2**number for number in range(len(asked))]
    assert lab.status(seen.run)["done"] == 1
    told = why(lab, seen.run)
    assert all(f"{number}: 1 oom on n" in line and "MiB" in line for number, line in enumerate(told["earlier"], 1))


# -- timeout ----------------------------------------------------------------------------------------------------------

TIMEOUT_STEPS = 60


@scenario(CALM)
def provoke_timeout(lab: Lab) -> Seen:
    # A busy machine may have little more done within the minute than to start.
    run = lab.pretrain("--time", "1", steps=TIMEOUT_STEPS, every=1)
    started = lab.event(run, "started")
    lab.event(run, "checkpoint")
    stop = run.attempt(1).stop_file(0)

    def warned() -> bool:
        return stop.exists() or bool(of_kind(run, "preempted"))

    # A machine that is fast enough would be done before the limit: the work stands still until it is warned.  On a slow one the
    # first checkpoint is that of the warning.
    if not warned():
        at_work = crew(lab, run, number_of(started["host"]))
        at_work.signal(signal.SIGSTOP)
        wait_until("the warning has come", warned, LIMIT_S)
        at_work.signal(signal.SIGCONT)
    return Seen(run=run, outcome=lab.ended(run))


def test_timeout_goes_on_from_its_checkpoint_in_the_same_job(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["timeout"].result()
    check_trained(lab, seen, TIMEOUT_STEPS)
    starts = of_kind(seen.run, "started")
    assert [event["start"] for event in starts] == list(range(len(starts))) and len(starts) >= 2
    assert len({event["job_id"] for event in starts}) == 1 and seen.run.last_attempt() == 1
    stopped = of_kind(seen.run, "preempted")
    assert stopped and {event["reason"] for event in stopped} == {"timeout"}
    saved = [event["step"] for event in of_kind(seen.run, "checkpoint") if event["time"] < stopped[0]["time"]]
    assert of_kind(seen.run, "resumed")[0]["step"] == saved[-1] > 0
    assert decisions(seen.run) == [("finish", [])]
    # The log of the first start is still there, before that of the next.
    text = seen.run.log_file(0, 1).read_text(errors="replace")
    # A busy machine may need the whole minute for a gate: that start is warned before it has begun to train.
    assert text.count("gate: n") >= len(starts) and text.index("gate: n") < text.index("resuming after step")
    assert (
        "Slurm repeated: " in why(lab, seen.run)["earlier"][0] and " timeout on n" in why(lab, seen.run)["earlier"][0]
    )


# -- preempted --------------------------------------------------------------------------------------------------------

PREEMPTED_STEPS = 60


@scenario(CALM)
def provoke_preempted(lab: Lab) -> Seen:
    """On n4 alone, where nothing else runs, under a budget of one attempt."""
    run = lab.pretrain(
        "--partition", "low", "cluster.exclude=[n1,n2,n3]", "cluster.max_attempts=1", steps=PREEMPTED_STEPS
    )
    lab.event(run, "checkpoint")
    at_work = crew(lab, run, 4)
    at_work.signal(signal.SIGSTOP)
    words = ["sbatch", "--parsable", "-p", "high", "-w", "n4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"]
    blocker = lab.cluster.run(words).stdout.strip()
    wait_until("the warning has come", run.attempt(1).stop_file(0).exists, LIMIT_S)
    at_work.signal(signal.SIGCONT)
    outcome = lab.ended(run)
    state = lab.cluster.run(["sacct", "-n", "-X", "-P", "-j", blocker, "-o", "State"]).stdout.strip()
    return Seen(run=run, outcome=outcome, notes={"blocker": state})


def test_preempted_goes_on_free_of_charge(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["preempted"].result()
    assert seen.notes["blocker"] == "COMPLETED"
    check_trained(lab, seen, PREEMPTED_STEPS)
    assert seen.run.last_attempt() == 1
    stopped = of_kind(seen.run, "preempted")
    assert [event["reason"] for event in stopped] == ["preempted"]
    resumed = of_kind(seen.run, "resumed")
    assert resumed and resumed[0]["step"] > 0 and len(of_kind(seen.run, "started")) == 2
    assert why(lab, seen.run)["earlier"] == ["attempt 1: 1 start(s) that Slurm repeated: 1 preempted on n4"]


# -- hang -------------------------------------------------------------------------------------------------------------

HANG_STEPS = 60


@scenario(CALM)
def provoke_hang(lab: Lab) -> Seen:
    # Fewer steps than tell its pace on a fast machine: what start-up may take counts then, too.
    words = ["--nodes", "2", "cluster.exclude=[n4]", "cluster.hang_min_s=20", "cluster.hang_slow_s=90"]
    run = lab.pretrain(*words, steps=HANG_STEPS)
    lab.event(run, "checkpoint")
    host = lab.event(run, "started", lambda event: event["task"] == 1)["host"]
    crew(lab, run, number_of(host)).signal(signal.SIGSTOP)
    return Seen(run=run, outcome=lab.ended(run), notes={"host": host})


def test_hang_is_dumped_killed_and_goes_on(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["hang"].result()
    check_trained(lab, seen, HANG_STEPS)
    failed = of_kind(seen.run, "failed")
    assert failed and {event["class"] for event in failed} == {"hang"}
    assert ("next_attempt", ["hang"]) in decisions(seen.run)
    for task in range(2):  # every rank's stack is in its own log
        text = seen.run.log_file(task, 1).read_text(errors="replace")
        assert "stack of pid" in text and "phenomhpc/train/" in text, text[-3000:]
    assert any("hang on n" in line and "stands still" in line for line in why(lab, seen.run)["earlier"])


# -- no_progress ------------------------------------------------------------------------------------------------------


@scenario(CALM)
def provoke_no_progress(lab: Lab) -> Seen:
    """Every start is killed before its first checkpoint."""
    run = lab.pretrain("cluster.exclude=[n4]", "cluster.max_attempts=5", steps=5000, every=5000)
    killed: set[str] = set()

    def ended() -> bool:
        for event in of_kind(run, "gate"):  # what is killed before is the gate's, and says nothing of the work
            if event["token"] not in killed and event["task"] == 0:
                crew(lab, run, number_of(event["host"])).signal(signal.SIGKILL)
                killed.add(event["token"])
        return run.outcome.is_file()

    wait_until(f"{run.id} has ended", ended, LIMIT_S)
    return Seen(run=run, outcome=lab.ended(run), notes={"kills": len(killed)})


def test_no_progress_twice_at_the_same_step_stops(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["no_progress"].result()
    assert (seen.outcome["state"], seen.outcome["exit_code"]) == ("failed", 1)
    assert "no progress" in seen.outcome["message"] and seen.notes["kills"] == 2
    assert [action for action, _ in decisions(seen.run)] == ["next_attempt", "stop"]
    told = why(lab, seen.run)
    assert told["failure"] == "no_progress"
    assert (told["failures"][0]["failure"], told["failures"][0]["exit_code"]) == ("node_fail", 137)
    assert "SIGKILL" in told["failures"][0]["message"]


# -- bad_input --------------------------------------------------------------------------------------------------------


@scenario(CALM)
def provoke_bad_input(lab: Lab) -> Seen:
    plates = lab.folder / "raw-bad"
    shutil.copytree(lab.folder / "raw", plates)
    bad = plates / "SYN-02" / "Plate1" / "A02_s1_w3.png"
    bad.write_bytes(bad.read_bytes()[:300])
    run = lab.convert("max_set_aside=0.5", "cluster.exclude=[n4]", plates=plates)
    return Seen(run=run, outcome=lab.ended(run))


def test_bad_input_is_set_aside_and_the_rest_is_done(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["bad_input"].result()
    assert (seen.outcome["state"], seen.outcome["exit_code"]) == ("finished", 3)
    ((thing, reason),) = seen.outcome["set_aside"]
    assert "SYN-02__Plate1" in thing and "A02" in thing and "truncated" in reason
    assert lab.status(seen.run)["done"] == 4 and seen.run.last_attempt() == 1
    assert why(lab, seen.run)["set_aside"] == [[thing, reason]]


# -- code_error -------------------------------------------------------------------------------------------------------

# A person's broken environment: what Python imports first in every process that finds it on its path.
BUG = """
import sys
if "phenomhpc.jobs.slurm_task" in sys.orig_argv:
    import phenomhpc.jobs.convert
    def run(config, ctx):
        return 1 / 0
    phenomhpc.jobs.convert.run = run
"""


@scenario(CALM)
def provoke_code_error(lab: Lab) -> Seen:
    broken = lab.folder / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(BUG)
    path = os.pathsep.join([str(broken), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = lab.convert("cluster.max_tasks=2", "cluster.exclude=[n4]", env={"PYTHONPATH": path})
    return Seen(run=run, outcome=lab.ended(run))


def test_code_error_stops_with_the_traceback(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["code_error"].result()
    assert (seen.outcome["state"], seen.outcome["exit_code"]) == ("failed", 1)
    assert "ZeroDivisionError: division by zero" in seen.outcome["message"]
    failed = of_kind(seen.run, "failed")
    assert classes(seen.run) == ["code_error"] * 2 and all("return 1 / 0" in event["traceback"] for event in failed)
    assert decisions(seen.run) == [("stop", ["code_error"])] and seen.run.last_attempt() == 1
    told = why(lab, seen.run)
    assert told["failure"] == "code_error"
    worst = told["failures"][0]
    assert "return 1 / 0" in worst["traceback"] and worst["exit_code"] == 1 and worst["max_rss_bytes"] > 1e6
    assert worst["host"] and worst["log_command"].startswith(f"phenomhpc logs {seen.run.id} --task ")


# -- cancelled --------------------------------------------------------------------------------------------------------


@scenario(CALM)
def provoke_cancelled(lab: Lab) -> Seen:
    run = lab.pretrain("cluster.exclude=[n4]", steps=100_000)
    lab.event(run, "started")
    lab.cluster.run(["scancel", lab.job_of(run)])
    outcome = lab.ended(run)
    time.sleep(5)  # nothing starts it again
    return Seen(run=run, outcome=outcome)


def test_cancelled_by_scancel_stays_cancelled(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["cancelled"].result()
    assert seen.outcome["state"] == "cancelled"
    assert decisions(seen.run) == [("stay_cancelled", ["cancelled"])]
    assert seen.run.last_attempt() == 1 and len(of_kind(seen.run, "started")) == 1
    queue = lab.cluster.run(["squeue", "-h", "-o", "%j %T"]).stdout
    assert not [line for line in queue.splitlines() if seen.run.id in line and "COMPLETING" not in line], queue
    assert why(lab, seen.run)["failure"] == "cancelled"


# -- node_fail --------------------------------------------------------------------------------------------------------

NODE_FAIL_STEPS = 60


@scenario(HARM)
def provoke_node_fail(lab: Lab) -> Seen:
    """Without Slurm's own requeue, so that the steward decides."""
    run = lab.pretrain("cluster.exclude=[n3,n4]", "cluster.requeue=false", steps=NODE_FAIL_STEPS)
    host = str(lab.event(run, "started")["host"])
    lab.event(run, "checkpoint")
    lab.cluster.power_cut(number_of(host))
    try:
        outcome = lab.ended(run)
        ledger = json.loads(lab.cluster.ledger.read_text())
    finally:
        lab.cluster.power_on(number_of(host))
    return Seen(run=run, outcome=outcome, notes={"host": host, "ledger": ledger})


def test_node_fail_goes_on_elsewhere_and_leaves_the_node_out(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["node_fail"].result()
    check_trained(lab, seen, NODE_FAIL_STEPS)
    host = seen.notes["host"]
    assert decisions(seen.run)[0] == ("next_attempt", ["node_fail"])
    first, second = of_kind(seen.run, "started")
    assert first["host"] == host != second["host"] and second["attempt"] == 2
    assert of_kind(seen.run, "resumed")[0]["step"] > 0
    assert [event["node"] for event in of_kind(seen.run, "excluded")] == [host]
    assert host in of_kind(seen.run, "submitted")[-1]["exclude"]
    # (The partition's node may be there, too.)
    assert host in [entry["node"] for entry in seen.notes["ledger"]["entries"] if entry["until"]]
    assert why(lab, seen.run)["earlier"][0].startswith(f"attempt 1: 1 node_fail on {host}")


# -- a partition of the network ---------------------------------------------------------------------------------------

PARTITION_STEPS = 80


@scenario(HARM)
def provoke_partition(lab: Lab) -> Seen:
    """On n3 a gang, which goes on committing for a while, then stands still, and an array's task, caught at its start.

    Both are started anew on n4, and the survivors wake up: the gang's while its successor works, the task's when that is done.
    """
    cluster = lab.cluster
    gang = lab.pretrain("cluster.exclude=[n1,n2]", steps=PARTITION_STEPS, every=2)
    lab.event(gang, "checkpoint")
    survivor = crew(lab, gang, 3)
    survivor.signal(signal.SIGSTOP, guard=True)
    task, asleep = _caught_at_its_start(lab)
    cluster.partition(3)
    try:
        cut = len(of_kind(gang, "checkpoint"))
        survivor.signal(signal.SIGCONT, guard=True)
        # (On a machine that is too busy for that the new start is faster, which is as good.)
        goes_on = (lambda: len(of_kind(gang, "checkpoint")) > cut), (lambda: len(of_kind(gang, "started")) > 1)
        wait_until("the cut-off gang commits", lambda: any(seen() for seen in goes_on), LIMIT_S)
        survivor.signal(signal.SIGSTOP, guard=True)
        own = of_kind(gang, "started")[0]["token"]
        last = [event for event in of_kind(gang, "checkpoint") if event["token"] == own][-1]
        anew = lab.event(gang, "started", lambda event: event["start"] == 1)
        survivor.signal(signal.SIGCONT, guard=True)
        wait_until("the gang's survivor is gone", lambda: crew_of(cluster, gang, 3) is None, LIMIT_S)
        task_outcome = lab.ended(task)
        files = [Path(task.root), lab.folder / str(load_run_config(task.run_yaml).store)]
        before = _files(*files)
        asleep.signal(signal.SIGCONT, guard=True)
        wait_until("the array's survivor is gone", lambda: crew_of(cluster, task, 3) is None, LIMIT_S)
        after = _files(*files)
        outcome = lab.ended(gang)
    finally:
        cluster.heal(3)
    notes = {"task": Seen(run=task, outcome=task_outcome), "before": before, "after": after, "last": last, "anew": anew}
    return Seen(run=gang, outcome=outcome, notes=notes)


def _caught_at_its_start(lab: Lab) -> tuple[RunPaths, Crew]:
    """A conversion whose only task is on n3, stopped between its claim and its first commit; one that was too fast goes its way."""
    for _ in range(5):
        run = lab.convert("cluster.max_tasks=1", "cluster.exclude=[n1,n2]")
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and not run.outcome.is_file():
            if of_kind(run, "started") and (found := crew_of(lab.cluster, run, 3)) is not None:
                found.signal(signal.SIGSTOP, guard=True)
                if not of_kind(run, "unit"):
                    return run, found
                found.signal(signal.SIGCONT, guard=True)
                lab.ended(run)
            time.sleep(0.01)
    raise AssertionError("no task was caught on n3")


def _files(*roots: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that a task may commit; what it says on its way out goes to its log."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and "logs" not in path.parts and "__pycache__" not in path.parts
    }


def _after_the_new_start(run: RunPaths, anew: Event) -> list[Event]:
    """Events of any older start of the same task that were written later."""
    return [
        event
        for event in read_events(run)
        if event["task"] == anew["task"] and event["token"] != anew["token"] and event["time"] > anew["time"]
    ]


def test_partition_leaves_a_survivor_that_writes_nothing_more(lab: Lab, provoked: dict[str, Future[Seen]]) -> None:
    seen = provoked["partition"].result()
    check_trained(lab, seen, PARTITION_STEPS)
    anew = seen.notes["anew"]
    old = of_kind(seen.run, "started")[0]
    assert (old["host"], anew["host"], old["attempt"], anew["attempt"]) == ("n3", "n4", 1, 1)
    # What the new start went on from is the last that the old one committed, and nothing was committed over it.
    saved = [event["step"] for event in of_kind(seen.run, "checkpoint") if event["token"] == old["token"]]
    assert of_kind(seen.run, "resumed")[0]["step"] == saved[-1] == seen.notes["last"]["step"]
    assert not _after_the_new_start(seen.run, anew)
    assert "was started anew elsewhere" in seen.run.log_file(0, 1).read_text(errors="replace")
    assert why(lab, seen.run)["earlier"] == ["attempt 1: 1 start(s) that Slurm repeated: 1 node_fail on n3"]


def test_partition_of_an_array_leaves_a_survivor_that_writes_nothing(
    lab: Lab, provoked: dict[str, Future[Seen]]
) -> None:
    notes = provoked["partition"].result().notes
    seen: Seen = notes["task"]
    assert (seen.outcome["state"], seen.outcome["exit_code"]) == ("finished", 0), seen.outcome
    hosts = [event["host"] for event in of_kind(seen.run, "started")]
    assert hosts == ["n3", "n4"]
    assert len({event["unit_id"] for event in of_kind(seen.run, "unit")}) == len(of_kind(seen.run, "unit")) == 4
    assert {event["host"] for event in of_kind(seen.run, "unit")} == {"n4"}
    assert notes["after"] == notes["before"]
