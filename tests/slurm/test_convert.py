"""Conversion on the real cluster: many plates in two stages, requeued in the middle, byte for byte an undisturbed one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from phenomhpc.jobs.survey import SURVEYED_HERE
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.test_jobs import LIMIT_S, Shell
from tests.unit.test_convert_job import arrays

PLATES = SURVEYED_HERE + 4


@pytest.fixture(scope="module")
def screen(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("screen")
    spec = SyntheticSpec(
        experiments=1, plates_per_experiment=1, plate_rows=4, plate_columns=6, field_px=256, num_genes=4, num_unexpressed=0
    )  # fmt: skip
    write_plates(folder / "one", spec, silent(), workers=1)
    for number in range(PLATES):
        plate = folder / "raw" / "EXP" / f"Plate{number + 1}"
        plate.mkdir(parents=True)
        for image in (folder / "one" / "SYN-01" / "Plate1").iterdir():
            os.link(image, plate / image.name)
    shell = Shell(cluster, folder)
    shell.type("init", "--yes")
    return shell


def test_many_plates_go_in_two_stages_and_requeued_tasks_change_no_byte(screen: Shell, cluster: Cluster) -> None:
    plates = ["--plates", "raw", "shard_mb=1", "cluster.max_tasks=4"]
    screen.type("convert", "--plates", "raw", "--store", "here", "shard_mb=1")
    run = screen.submit("convert", *plates, "--store", "there", wait=False)

    def running() -> list[str]:
        """Array elements of the second stage that have converted something."""
        events = read_events(run) if run.last_attempt() == 2 else []
        return [
            f"{event['job_id']}"
            for event in events
            if event["event"] == "unit" and event["attempt"] == 2 and event["job_id"]
        ]

    requeued: set[str] = set()
    until = time.monotonic() + LIMIT_S
    while not run.outcome.is_file() and time.monotonic() < until:
        for job in set(running()) - requeued:
            if not cluster.run(["scontrol", "requeue", job], check=False).returncode:
                requeued.add(job)
        time.sleep(0.1)
    wait_until("it has ended", lambda: run.outcome.is_file(), LIMIT_S)
    status = screen.status(run)
    assert (status["state"], status["attempt"]) == ("finished", 2), status
    restarted = [event for event in read_events(run) if event["event"] == "started" and event["start"] > 0]
    assert requeued and restarted
    assert arrays(screen.folder / "there") == arrays(screen.folder / "here")
    assert snapshots(screen.folder / "there") == snapshots(screen.folder / "here")
    cluster.wait_idle()


def snapshots(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "snapshots").iterdir())
