"""Arrays without a ceiling: more tasks than one array may have, and more than a person may have in the queue."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from phenomhpc.runs import read_outcome
from phenomhpc.slurm.record import read_submitted
from phenomhpc.store import Snapshot, open_store
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.cluster.settings import ClusterSpec
from tests.slurm.provoking import Lab, of_kind

# One plate has one tiny field: a unit of the survey, and one of the conversion.  make soak asks for ten times as many.
SOAK = bool(os.environ.get("PHENOMHPC_SOAK"))
UNITS, TASKS, MAX_ARRAY, MAX_SUBMIT = (25_000, 2_500, 1001, 500) if SOAK else (800, 72, 61, 30)
LIMIT_S = 5400 if SOAK else 840


@pytest.fixture(scope="module")
def narrow() -> Iterator[Cluster]:
    """A cluster with little room, beside the one of the other tests."""
    spec = ClusterSpec(max_submit_jobs=MAX_SUBMIT, overrides={"MaxArraySize": MAX_ARRAY})
    with Cluster(Path(tempfile.mkdtemp(prefix="phcn")), spec) as running:
        yield running


@pytest.fixture(scope="module")
def lab(narrow: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(narrow, tmp_path_factory.mktemp("narrow"))
    picture = imagecodecs.png_encode(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for number in range(UNITS):
        plate = made.folder / "raw" / f"EXP-{number // 500:02d}" / f"Plate{number % 500 + 1}"
        plate.mkdir(parents=True)
        (plate / "A01_s1_w1.png").write_bytes(picture)
    made.type("init", "--yes")
    return made


@pytest.mark.timeout(LIMIT_S + 300)
def test_every_unit_is_done_exactly_once_whatever_the_queue_holds(lab: Lab, narrow: Cluster) -> None:
    words = ["convert", "--plates", "raw", "--store", "store", "shard_mb=1", f"cluster.max_tasks={TASKS}"]
    run = lab.leave(*words, "cluster.throttle=12")
    seen: Counter[str] = Counter()
    most = 0
    cut = False

    def look() -> bool:
        nonlocal most, cut
        lines = narrow.run(["squeue", "-h", "-r", "-o", "%A|%K|%r|%T"]).stdout.splitlines()
        most = max(most, len(lines))
        seen.update({line.split("|")[2] for line in lines})
        indexes = [int(line.split("|")[1]) for line in lines if line.split("|")[1].isdigit()]
        assert max(indexes, default=0) < MAX_ARRAY
        running = [line for line in lines if line.endswith("|RUNNING") and line.split("|")[1].isdigit()]
        assert len(running) <= 12, "throttled"
        if not cut and len(of_kind(run, "finished")) > TASKS // 4:
            narrow.power_cut(2)  # some of its tasks are at work, and must be done anew elsewhere
            cut = True
        return read_outcome(run) is not None

    wait_until("the run has ended by itself", look, LIMIT_S)
    narrow.power_on(2)
    outcome = read_outcome(run)
    assert outcome is not None and (outcome["state"], outcome["exit_code"]) == ("finished", 0), outcome
    assert cut and most <= MAX_SUBMIT
    assert "DependencyNeverSatisfied" not in seen
    # Exactly once: every unit has one event, whoever did it, and its field is in the store.
    done = Counter(event["unit_id"] for event in of_kind(run, "unit"))
    assert len(done) == 2 * UNITS and set(done.values()) == {1}, done.most_common(3)
    snapshot = Snapshot.open(open_store(str(lab.folder / "store")), None)
    assert snapshot.num_fields == len(snapshot.plates) == UNITS
    for attempt in (1, 2):  # the two stages
        submitted = read_submitted(run.attempt(attempt))
        assert submitted is not None and submitted.fed == submitted.num_tasks == TASKS and len(submitted.chunks) > 2
    assert lab.status(run)["done"] == UNITS
    wait_until("nothing is left in the queue", lambda: not narrow.run(["squeue", "-h"]).stdout.strip(), 180)
