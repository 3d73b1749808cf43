"""What a person does with a run on the real cluster: from Python, watching it, trying it again, adding up what it cost."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from phenomhpc.runs import RunPaths, read_outcome
from phenomhpc.store import Snapshot, open_store
from tests.cluster import Cluster
from tests.slurm.provoking import LIMIT_S, Lab, make_lab, of_kind

FROM_PYTHON = """
import json, phenomhpc
from phenomhpc.errors import UsageError, WorkError
run = phenomhpc.submit("convert", plates="raw", store="store-py", time="30", overrides=["shard_mb=1", "cluster.max_tasks=2"])
first = run.status().state
code = run.wait(timeout=400, poll_s=0.5)
result, status = run.result(), run.status()
told = {"id": run.id, "first": first, "code": code, "text": result.text, "state": status.state, "done": status.done}
told["log"] = run.logs(task=1)
script = phenomhpc.submit("run", command=["sleep", "1000"], overrides=["cluster.gate=false"])
told["cancel"] = script.cancel()
told["cancelled"] = script.status().state
for name, call in (("result", script.result), ("refused", lambda: phenomhpc.submit("run", command=["true"], nodes=9))):
    try:
        call()
    except (UsageError, WorkError) as error:
        told[name] = f"{type(error).__name__}: {error}"
told["runs"] = [entry.id for entry in phenomhpc.runs_in("runs")]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(cluster, tmp_path_factory.mktemp("handle"))


def test_a_run_is_held_from_python(lab: Lab, cluster: Cluster) -> None:
    done = cluster.run([sys.executable, "-c", FROM_PYTHON], cwd=lab.folder, timeout=LIMIT_S)
    told = json.loads(done.stdout)
    assert told["first"] in {"queued", "running", "finished"}
    assert (told["code"], told["state"], told["done"]) == (0, "finished", 4), told
    assert "4 plate(s)" in told["text"] and "convert: " in told["log"]
    assert "is cancelled" in told["cancel"] and told["cancelled"] == "cancelled"
    assert told["result"].startswith("WorkError: run ") and "cancelled" in told["result"]
    assert told["refused"] == "UsageError: --nodes 9: partition main has 4 node(s)"
    assert told["id"] in told["runs"]
    cluster.wait_idle()


def files(*roots: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for root in roots for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_was_set_aside_is_tried_again_after_it_was_mended_as_a_new_attempt(lab: Lab, cluster: Cluster) -> None:
    plates = lab.folder / "raw-mend"
    shutil.copytree(lab.folder / "raw", plates)
    bad = plates / "SYN-02" / "Plate1" / "A02_s1_w3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:300])
    run = lab.convert("max_set_aside=0.5", "cluster.max_tasks=3", plates=plates)
    assert lab.ended(run)["exit_code"] == 3
    before = files(run.attempt(1).root, *run.logs.glob("?.001.out"))
    units = of_kind(run, "unit")
    refused = lab.type("retry", run.id, "--failed", check=False)
    assert refused.returncode == 2 and "what was set aside: --class bad_input" in refused.stderr

    bad.write_bytes(whole)
    assert "goes on as attempt 2: 1 unit(s): what failed as bad_input" in (
        lab.type("retry", run.id, "--class", "bad_input").stdout
    )
    # Whoever watches sees it through, and leaves with its code.
    watched = lab.type("status", run.id, "--watch")
    assert f"{run.id}: finished" in watched.stdout.splitlines()[-1]
    outcome = lab.ended(run)
    assert (outcome["exit_code"], outcome["set_aside"], run.last_attempt()) == (0, [], 2)
    again = [event for event in of_kind(run, "unit") if event["attempt"] == 2]
    assert len(again) == 1 and again[0]["unit_id"].startswith("SYN-02__Plate1/")
    assert len(of_kind(run, "unit")) == len(units) + 1
    after = files(run.attempt(1).root, *run.logs.glob("?.001.out"))
    assert {name: data for name, data in after.items() if name in before} == before, "an attempt is immutable"
    store = open_store(
        json.loads((run.root / "outcome.json").read_text())["message"].split(" are in ")[1].split(",")[0]
    )
    assert Snapshot.open(store, None).num_fields == 32
    assert lab.status(run)["done"] == len(units)
    cluster.wait_idle()


def test_what_failed_is_tried_again_and_the_rest_is_not(lab: Lab, cluster: Cluster) -> None:
    """One of three tasks meets an error in somebody's code, which is mended."""
    broken = lab.folder / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'phenomhpc.jobs.slurm_task' in sys.orig_argv:\n"
        "    import phenomhpc.jobs.convert as job\n"
        "    real = job._convert\n"
        "    def convert(config, ctx):\n"
        "        return real(config, ctx) if ctx.task != 1 else {}['SYN']\n"
        "    job._convert = convert\n"
    )
    run = lab.convert("cluster.max_tasks=3", env={"PYTHONPATH": str(broken)})
    outcome = lab.ended(run)
    assert outcome["state"] == "failed" and "code_error: KeyError: 'SYN'" in outcome["message"]
    done = {event["unit_id"] for event in of_kind(run, "unit")}
    assert {event["task"] for event in of_kind(run, "unit")} == {0, 2}
    wrong = lab.type("retry", run.id, "--class", "oom", check=False)
    assert wrong.returncode == 2 and "no missing unit is what failed as oom" in wrong.stderr
    (broken / "sitecustomize.py").write_text("")
    assert "goes on as attempt 2" in lab.type("retry", run.id, "--failed").stdout
    assert lab.ended(run)["state"] == "finished"
    units = [event["unit_id"] for event in of_kind(run, "unit")]
    assert len(units) == len(set(units)) and done < set(units), "nothing was done twice"
    said = lab.type("why", run.id).stdout
    assert "retried after attempt 1: failed" in said and "1 code_error on n" in said
    cluster.wait_idle()


def test_the_accounts_hold_every_run_and_add_up(lab: Lab) -> None:
    told = json.loads(lab.type("runs", "--usage", "--json").stdout)
    runs = {entry["run"]: entry for entry in told["runs"]}
    ended = [path.name for path in (lab.folder / "runs").iterdir() if read_outcome(RunPaths(path)) is not None]
    assert set(ended) <= set(runs) and ended
    for name in ("used", "useful", "lost"):
        total = sum(entry["usage"]["core"][name] for entry in runs.values())
        assert told["users"]["root"]["core"][name] == pytest.approx(total) and total > 0
    for entry in runs.values():
        core = entry["usage"]["core"]
        assert core["used"] == pytest.approx(core["useful"] + core["lost"])
    assert "Per user" in lab.type("runs", "--usage").stdout
    assert "no runs in" in lab.type("runs", "--usage", "--runs", "nowhere").stdout
