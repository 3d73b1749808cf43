"""What is asked of Slurm, as pure functions: facts read, submissions planned, scripts rendered."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from phenomhpc.config import ClusterConfig
from phenomhpc.errors import UnreachableError, UsageError
from phenomhpc.runs import RunPaths
from phenomhpc.slurm.accounts import Accounting, Association
from phenomhpc.slurm.facts import (
    ClusterFacts,
    Partition,
    QueueLimits,
    parse_associations,
    parse_config,
    parse_gpus,
    parse_partitions,
    parse_qos,
    parse_time_limit,
)
from phenomhpc.slurm.inside import is_stop_due, parse_job
from phenomhpc.slurm.plan import Submission, plan_submission
from phenomhpc.slurm.programs import LimitReachedError, refusal, run_program, scrubbed_names
from phenomhpc.slurm.render import render, render_steward

MAIN = Partition(
    name="main",
    num_nodes=4,
    is_default=True,
    max_time_minutes=2880,
    gpus_per_node=8,
    cpus_per_node=64,
    mem_mb_per_node=500_000,
)
FACTS = ClusterFacts(name="phenom", version="22.05", partitions=(MAIN,), max_array_size=1001)


def accounting(*accounts: str) -> Accounting:
    return Accounting(associations=tuple(Association(account=name) for name in accounts))


def submission(
    cluster: ClusterConfig,
    *,
    gang: bool = False,
    num_tasks: int = 3,
    facts: ClusterFacts | None = FACTS,
    root: str = "/r/id",
) -> Submission:
    return plan_submission(
        run_root=Path(root),
        kind="convert",
        attempt=1,
        num_tasks=num_tasks,
        gang=gang,
        cluster=cluster,
        python="python",
        code=Path(root) / "code",
        facts=facts,
    )


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", None),
        ("n/a", None),
        ("30:00", 30),
        ("1:30:00", 90),
        ("0:30", 1),
        ("2-00:00:00", 2880),
        ("1-00:30:00", 1470),
    ],
)
def test_a_partitions_time_limit_is_read(text: str, minutes: int | None) -> None:
    assert parse_time_limit(text) == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [("gpu:8", 8), ("gpu:a100:8(S:0-1)", 8), ("(null)", 0), ("gpu:a100:4,gpu:h100:2,nvme:1", 6), ("shard:8,gpu:1", 1)],
)
def test_gpus_are_counted_in_a_nodes_gres(gres: str, gpus: int) -> None:
    assert parse_gpus(gres) == gpus


def test_kinds_of_nodes_of_one_partition_are_merged() -> None:
    kinds = (
        "main|3|2-00:00:00|1:00:00|gpu:4|64|500000|main*",
        "main|1|2-00:00:00|1:00:00|gpu:8|128+|900000+|main*",
        "long|2|infinite|n/a|(null)|32|100000|long",
    )
    main, long = parse_partitions("\n".join(kinds))
    assert (main.num_nodes, main.gpus_per_node, main.cpus_per_node, main.mem_mb_per_node) == (4, 8, 128, 900000)
    assert (main.is_default, main.max_time_minutes, main.default_time_minutes) == (True, 2880, 60)
    assert (long.is_default, long.max_time_minutes, long.gpus_per_node) == (False, None, 0)


def test_the_configuration_is_read_as_names_and_values() -> None:
    values = parse_config("Configuration data as of now\nMaxArraySize            = 101\nAuthInfo  = a=b,c=d\n")
    assert values == {"MaxArraySize": "101", "AuthInfo": "a=b,c=d"}


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"nodes": 5}, "--nodes 5: partition main has 4 node(s)"),
        ({"gpus_per_node": 9}, "--gpus-per-node 9: partition main has 8 GPU(s) per node"),
        ({"time_minutes": 2881}, "--time (minutes) 2881: partition main has 2880 minutes at most"),
        ({"partition": "mian"}, "--partition mian: phenom has main; did you mean main?"),
        ({"nodes": 5, "gpus_per_node": 9}, "--nodes 5: partition main has 4 node(s); --gpus-per-node 9"),
    ],
)
def test_what_the_cluster_has_not_is_refused_and_named(cluster: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        config = ClusterConfig.model_validate(cluster)
        submission(config, gang=True, num_tasks=config.nodes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_account_is_refused_only_where_slurm_insists_on_accounts() -> None:
    submission(ClusterConfig(account="lab"))
    strict = ClusterFacts(
        name="x", version="", partitions=(MAIN,), max_array_size=9, accounting=accounting("labs", "guests")
    )
    with pytest.raises(UsageError, match=r"--account lab: you may use guests, labs; did you mean labs\?"):
        submission(ClusterConfig(account="lab"), facts=strict)


ASSOCIATIONS = """
ClusterName=phenom Account=lab UserName= Partition= Priority=0 ID=3
    GrpSubmitJobs=400(7) GrpWall=N(0.00)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=
ClusterName=phenom Account=lab UserName=ann(1001) Partition= Priority=0 ID=4
    ParentAccount= Lft=3 DefAssoc=Yes
    GrpSubmitJobs=N(0) GrpWall=N(0.00)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs=50(12) MaxWallPJ=
ClusterName=phenom Account=lab UserName=bob(1002) Partition= Priority=0 ID=5
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs=5(0) MaxWallPJ=
ClusterName=phenom Account=free UserName=ann(1001) Partition= Priority=0 ID=6
    ParentAccount= Lft=3 DefAssoc=No
    GrpSubmitJobs=N(0) GrpWall=N(0.00)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=
"""


def test_the_least_of_the_limits_on_the_queue_binds() -> None:
    accounts, default = parse_associations(ASSOCIATIONS, "ann")
    assert (accounts, default) == ({"lab": 50}, "lab")
    assert parse_associations(ASSOCIATIONS, "carl") == ({"lab": 400}, "")
    qos = parse_qos("normal|100|\nlong|8|30\nfree||\n")
    assert qos == {"normal": 100, "long": 8}
    limits = QueueLimits(accounts=accounts, qos=qos, default_account=default)
    asked = [(None, None), ("lab", "long"), ("free", None), ("free", "free")]
    assert [limits.max_submit_jobs(*one) for one in asked] == [50, 8, 100, None]


def test_an_attempt_is_shaped_by_the_limits_of_its_account() -> None:
    facts = ClusterFacts(
        name="x", version="", partitions=(MAIN,), max_array_size=101, max_job_count=10_000,
        queue_limits=QueueLimits(accounts={"lab": 50}),
    )  # fmt: skip
    bound = submission(ClusterConfig(account="lab"), num_tasks=250, facts=facts)
    assert bound.window.size * bound.window.in_flight <= 48 and sum(chunk.size for chunk in bound.chunks) == 250
    free = submission(ClusterConfig(account="free"), num_tasks=250, facts=facts)
    assert [(chunk.offset, chunk.size) for chunk in free.chunks] == [(0, 101), (101, 101), (202, 48)]


def test_without_a_default_partition_one_must_be_chosen() -> None:
    partitions = tuple(Partition(**{**MAIN.__dict__, "name": name, "is_default": False}) for name in ("a", "b"))
    facts = ClusterFacts(name="x", version="", partitions=partitions, max_array_size=1001)
    with pytest.raises(UsageError, match="--partition is missing: x has no default partition; choose one of a, b"):
        submission(ClusterConfig(), facts=facts)


def test_an_array_script_names_its_tasks_and_requeues_exactly_one() -> None:
    cluster = ClusterConfig(time_minutes=90, throttle=10, cpus_per_task=2, mem_mb=4000, partition="main", account="lab")
    plan = submission(cluster, num_tasks=2500)
    assert [(chunk.offset, chunk.size) for chunk in plan.chunks] == [(0, 1001), (1001, 1001), (2002, 498)]
    script = render(plan, plan.chunks[1])
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in (
        "job-name=id", "array=0-1000%3", "time=90",
        "comment='phenomhpc attempt=1 chunk=1 offset=1001 size=1001'",
        "cpus-per-task=2", "mem=4000M", "partition=main", "account=lab",
        "signal=B:USR2@120", "requeue", "open-mode=append", "nodes=1", "chdir=/r/id",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert "task=$((1001 + SLURM_ARRAY_TASK_ID))" in lines
    assert "phenomhpc.jobs.slurm_task /r/id 1 1001 &" in script
    assert "PHENOMHPC_LIMIT_S=5400" in script
    assert "--cpus-per-task=2" in next(line for line in lines if line.startswith("srun"))
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' in script
    assert "PYTHONPATH=/r/id/code" in script
    assert "gpus" not in script


def test_a_gang_is_one_job_whose_nodes_leave_on_their_own() -> None:
    plan = submission(ClusterConfig(nodes=4, gpus_per_node=2), gang=True, num_tasks=4)
    script = render(plan, plan.chunks[0])
    for option in ("nodes=4", "ntasks-per-node=1", "gpus-per-node=2", "cpus-per-task=16"):
        assert f"#SBATCH --{option}\n" in script
    assert "--array" not in script
    assert "--kill-on-bad-exit=0 --wait=" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script
    assert plan.gpu_hours is None
    assert submission(ClusterConfig(nodes=4, gpus_per_node=2, time_minutes=90), gang=True, num_tasks=4).gpu_hours == 12


def test_an_elastic_gang_keeps_its_job_when_a_node_is_lost() -> None:
    plan = submission(ClusterConfig.model_validate({"nodes": "2:4", "cpus_per_task": 8}), gang=True, num_tasks=4)
    script = render(plan, plan.chunks[0])
    for option in ("nodes=2-4", "no-kill", "requeue", "cpus-per-task=8"):
        assert f"#SBATCH --{option}\n" in script
    # With it, Slurm 22.05 gives a range of nodes its least, however many are idle.
    assert "#SBATCH --ntasks-per-node" not in script
    assert "--kill-on-bad-exit=0 --no-kill --wait=0 " in script
    assert "--no-kill" not in render(submission(ClusterConfig(nodes=4), gang=True, num_tasks=4), plan.chunks[0])


@pytest.mark.parametrize(("start", "asked"), [(None, True), ("1", False), ("2", True)])
def test_an_elastic_gang_is_requeued_where_a_lost_nodes_exit_code_hides_the_wish(
    tmp_path: Path, start: str | None, asked: bool
) -> None:
    attempt = RunPaths(tmp_path / "a b$c").attempt(1)
    for number in (0, 2):
        attempt.rounds(number).root.mkdir(parents=True)
        attempt.rounds(number).requeue.touch()
    elastic = ClusterConfig(nodes=3, min_nodes=1)
    more = {} if start is None else {"SLURM_RESTART_COUNT": start}
    done, called = _run_script(tmp_path / "a b$c", True, "exit 137", elastic, more)
    assert done.returncode == 137
    assert called == ("requeue 77\n" if asked else "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nodes": "4:2"}, "min_nodes=4 is more than nodes=2"),
        ({"nodes": "2:x"}, "LEAST:MOST as in 2:4"),
        ({"nodes": ":4"}, "LEAST:MOST as in 2:4"),
    ],
)
def test_a_range_of_nodes_is_checked(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterConfig.model_validate(given)


def test_slurms_line_about_a_job_is_read() -> None:
    line = (
        "JobId=7 JobName=p UserId=u(1) JobState=RUNNING Reason=None Requeue=1 Restarts=2 ReqNodeList=(null) "
        "NodeList=n[2-4] BatchHost=n1"
    )
    assert parse_job(line) == ("RUNNING", 2, "n[2-4]")
    assert parse_job("JobId=7 JobState=PENDING Reason=Resources") == ("PENDING", 0, "")


def test_a_task_knows_when_its_limit_is_near() -> None:
    environment = {"PHENOMHPC_JOB_BEGAN": "1000", "PHENOMHPC_LIMIT_S": "600", "PHENOMHPC_SIGNAL_LEAD_S": "100"}
    assert not is_stop_due(environment, 1499)
    assert is_stop_due(environment, 1500)
    assert not is_stop_due({**environment, "PHENOMHPC_LIMIT_S": "0"}, 9999)
    assert not is_stop_due({}, 9999)


def test_a_short_job_is_warned_shortly_before_its_end() -> None:
    assert submission(ClusterConfig(time_minutes=2)).signal_lead_s < 60
    short = Partition(**{**MAIN.__dict__, "default_time_minutes": 1})
    facts = ClusterFacts(name="x", version="", partitions=(short,), max_array_size=1001)
    assert submission(ClusterConfig(), facts=facts).signal_lead_s < 60
    assert submission(ClusterConfig()).signal_lead_s == 120


def test_the_steward_asks_for_no_more_than_its_partition_gives() -> None:
    small = Partition(**{**MAIN.__dict__, "max_time_minutes": 30, "mem_mb_per_node": 2000})
    facts = ClusterFacts(name="x", version="", partitions=(small,), max_array_size=1001)
    script = render_steward(submission(ClusterConfig(), facts=facts), ("7", "8"))
    for option in (
        "time=30",
        "mem=2000M",
        "dependency=afterany:7,afterany:8",
        "requeue",
        "cpus-per-task=1",
        "chdir=/r/id",
    ):
        assert f"#SBATCH --{option}\n" in script
    some = render_steward(submission(ClusterConfig()), ("7", "8"), any_of=True)
    assert "#SBATCH --dependency='afterany:7?afterany:8'\n" in some
    assert "dependency" not in render_steward(submission(ClusterConfig()), ())
    assert "#SBATCH --begin=now+60\n" in render_steward(submission(ClusterConfig()), (), 60)


@pytest.mark.parametrize("code", [0, 1, 75])
@pytest.mark.parametrize("gang", [True, False])
def test_the_script_gives_the_tasks_code_and_requeues_only_on_75(tmp_path: Path, code: int, gang: bool) -> None:
    done, called = _run_script(tmp_path / "a b$c", gang, f"exit {code}")
    assert done.returncode == code
    element = "77" if gang else "77_2"
    assert called == (f"requeue {element}\n" if code == 75 else "")


@pytest.mark.parametrize("gang", [True, False])
def test_a_signal_becomes_stop_files_and_the_step_goes_on_to_its_own_end(tmp_path: Path, gang: bool) -> None:
    root = tmp_path / "a b$c"
    stop = root / "attempts" / "001" / "stop-2"
    seen = str(stop).replace("$", "\\$")
    # The step signals the batch shell as Slurm would, waits for the stop file, works a little more, and leaves with 75.
    body = f'kill -USR2 $PPID; while [ ! -e "{seen}" ]; do sleep 0.05; done; sleep 0.3; exit 75'
    done, called = _run_script(root, gang, body)
    assert done.returncode == 75, done.stderr
    assert called.startswith("requeue")
    expected = {"stop-0", "stop-1", "stop-2"} if gang else {"stop-2"}
    assert {path.name for path in stop.parent.iterdir()} == expected


def _run_script(
    root: Path,
    gang: bool,
    body: str,
    cluster: ClusterConfig | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a rendered script with bash; srun runs `body`, scontrol writes down what it was asked."""
    (root / "attempts" / "001").mkdir(parents=True, exist_ok=True)
    programs = root / "bin"
    programs.mkdir()
    asked = root / "asked"
    for name, text in (("srun", body), ("scontrol", f"echo \"$@\" >> '{asked}'")):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    plan = submission(cluster or ClusterConfig(), gang=gang, num_tasks=3, root=str(root))
    environment = {
        **(variables or {}),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77" if gang else "80",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "2",
    }
    script = render(plan, plan.chunks[0])
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=20)
    return done, asked.read_text() if asked.exists() else ""


def test_slurms_variables_do_not_travel_but_its_configuration_does() -> None:
    names = ["SLURM_CPU_BIND", "SBATCH_PARTITION", "PMIX_RANK", "SRUN_DEBUG", "SLURM_CONF", "PATH", "MYSLURM_X"]
    assert scrubbed_names(names) == ["PMIX_RANK", "SBATCH_PARTITION", "SLURM_CPU_BIND", "SRUN_DEBUG"]


def test_a_program_that_hangs_or_is_absent_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match=r"no answer within 0\.2 s"):
        run_program(["sleep", "30"], limit_s=0.2)
    with pytest.raises(UnreachableError, match="not found"):
        run_program(["no-such-program-of-slurm"])


def test_a_refusal_is_wrong_use_and_silence_is_not() -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    error = refusal("id", words)
    assert isinstance(error, UsageError)
    assert str(error) == "run id: Slurm refuses the job: Invalid account or account/partition combination specified"
    away = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    assert isinstance(refusal("id", away), UnreachableError)
    full = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    assert isinstance(refusal("id", full), LimitReachedError)
    assert "AssocMaxSubmitJobLimit; Job violates accounting/QOS policy; wait for some" in str(refusal("id", full))
