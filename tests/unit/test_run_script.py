"""Anybody's script here: its environment, its end and what that means, its frozen folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phenomhpc.cli.arguments import spread_lists
from phenomhpc.errors import HungError, ScriptFailedError, WorkError
from phenomhpc.jobs.script import Patience, last_traceback, patience, run_script
from phenomhpc.jobs.script_code import copy_script, copy_tree, tree_of
from phenomhpc.jobs.script_environment import Meeting, node_environment, rank_environment
from phenomhpc.jobs.task import _class_of
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, read_events, read_outcome, read_provenance

MEETING = Meeting(
    id="run.1.0", num_nodes=2, node_rank=1, ranks_per_node=4, address="n1", port=23456, interface="eth0", threads=3
)
PATIENT = Patience(wait_s=0.3, signal=15, grace_s=1.0, peer_wait_s=30)


def python(text: str) -> list[str]:
    return [sys.executable, "-u", "-c", text]


# -- pure -------------------------------------------------------------------------------------------------------------


def test_words_behind_the_dashes_belong_to_the_script_untouched() -> None:
    words = [
        "submit",
        "run",
        "--nodes",
        "2",
        "cluster.gate=false",
        "--",
        "python",
        "-u",
        "train.py",
        "--lr=1",
        "--",
        "a b",
        "x=1",
    ]
    spread = spread_lists(words, ["--plates"])
    assert spread[:5] == words[:5]
    assert spread[5:] == [f"--command={word}" for word in words[6:]]
    assert spread_lists(["runs", "--", "run"], []) == ["runs", "--", "run"]


def test_a_rank_gets_torchruns_variables_and_no_place_of_slurm() -> None:
    base = {
        "PATH": "/bin", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_CPU_BIND": "x", "PMIX_RANK": "1",
        "SLURM_JOB_ID": "17", "NCCL_SOCKET_IFNAME": "ib0",
    }  # fmt: skip
    ranks = [rank_environment(base, MEETING, {"PHENOMHPC_OUTPUT": "/o"}, local) for local in range(4)]
    assert [each["RANK"] for each in ranks] == ["4", "5", "6", "7"]
    assert [each["LOCAL_RANK"] for each in ranks] == ["0", "1", "2", "3"]
    one = ranks[2]
    assert (one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["GROUP_RANK"]) == ("8", "4", "1")
    assert (one["MASTER_ADDR"], one["MASTER_PORT"], one["OMP_NUM_THREADS"]) == ("n1", "23456", "3")
    assert (one["SLURM_JOB_ID"], one["NCCL_SOCKET_IFNAME"], one["GLOO_SOCKET_IFNAME"]) == ("17", "ib0", "eth0")
    assert not {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_CPU_BIND", "PMIX_RANK"} & set(one)
    plain = node_environment(base, MEETING, {})
    assert (plain["NODE_RANK"], plain["NNODES"]) == ("1", "2") and "RANK" not in plain


def test_stop_file_signal_and_kill_share_the_time_that_slurm_leaves() -> None:
    how = patience(90, "SIGTERM", 0, None)
    assert (how.wait_s, how.signal, how.peer_wait_s) == (0, 15, 30)
    assert how.wait_s + how.grace_s < 90
    assert patience(90, "none", 5, 7) == Patience(wait_s=5, signal=0, grace_s=7, peer_wait_s=30)


def test_the_last_traceback_is_found_among_other_words() -> None:
    text = (
        "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'a', line 1\n[rank0]: KeyError: 'x'\n"
        "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'b', line 2\n[rank0]: ValueError: no such thing\nbye\n"
    )
    traceback, words = last_traceback(text)
    assert words == "ValueError: no such thing"
    assert traceback == "Traceback (most recent call last):\n  File 'b', line 2\nValueError: no such thing"
    assert last_traceback("warning\nlibfoo.so: cannot open\n\n") == (None, "libfoo.so: cannot open")
    assert last_traceback("") == (None, "")


# -- processes --------------------------------------------------------------------------------------------------------


def end_of(tmp_path: Path, text: str, num: int = 1, how: Patience = PATIENT, silent_limit_s: float | None = None):  # type: ignore[no-untyped-def]
    environments = [
        {**os.environ, "RANK": str(rank), "NODE_RANK": "0", "STOP": str(tmp_path / "stop")} for rank in range(num)
    ]
    return run_script(
        python(text), tmp_path, environments, stop_file=tmp_path / "stop", patience=how, look=lambda: False,
        silent_limit_s=silent_limit_s,
    )  # fmt: skip


def test_it_is_done_when_all_ranks_end_well(tmp_path: Path) -> None:
    assert end_of(tmp_path, "pass", num=2).state == "done"


def test_the_rank_that_fails_is_named_with_its_last_words_and_the_others_are_killed(tmp_path: Path) -> None:
    text = "import os, time\nif os.environ['RANK'] == '1': raise ValueError('no such thing')\ntime.sleep(60)"
    began = time.monotonic()
    ending = end_of(tmp_path, text, num=2)
    assert (ending.state, ending.code, ending.rank, ending.words) == ("failed", 1, 1, "ValueError: no such thing")
    assert "Traceback" in ending.tail and time.monotonic() - began < 30


def test_a_script_that_leaves_with_75_is_to_go_on_and_takes_the_other_ranks_with_it(tmp_path: Path) -> None:
    text = (
        "import os, sys, time\nif os.environ['RANK'] == '0': sys.exit(75)\n"
        "while not os.path.exists(os.environ['STOP']): time.sleep(0.05)\nsys.exit(75)"
    )
    ending = end_of(tmp_path, text, num=2, how=Patience(wait_s=30, signal=15, grace_s=30, peer_wait_s=30))
    assert (ending.state, ending.code, ending.asked) == ("stopped", 75, False)


def test_a_script_that_knows_no_stop_file_gets_the_signal(tmp_path: Path) -> None:
    text = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w').close(), sys.exit(0)))\n"
        "open(os.environ['STOP'], 'w').close()\ntime.sleep(60)"
    )
    ending = end_of(tmp_path, text, how=Patience(wait_s=0.3, signal=15, grace_s=30, peer_wait_s=30))
    assert (ending.state, ending.asked) == ("stopped", True) and "SIGTERM" in ending.words
    assert (tmp_path / "saved").is_file()


def test_a_script_that_goes_on_after_the_signal_is_killed(tmp_path: Path) -> None:
    text = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(os.environ['STOP'], 'w').close()\ntime.sleep(60)"
    )
    ending = end_of(tmp_path, text)
    assert (ending.state, ending.code) == ("stopped", -9) and "killed" in ending.words


def test_a_script_that_ends_well_when_asked_by_the_stop_file_is_done(tmp_path: Path) -> None:
    text = "import os\nopen(os.environ['STOP'], 'w').close()"
    assert end_of(tmp_path, text, how=Patience(wait_s=30, signal=15, grace_s=30, peer_wait_s=30)).state == "done"


def test_ranks_whose_peers_have_left_are_given_time_for_the_same(tmp_path: Path) -> None:
    text = "import os, sys, time\nwhile not os.path.exists(os.environ['STOP']): time.sleep(0.05)\ntime.sleep(0.5)\nsys.exit(75)"
    environment = {**os.environ, "NODE_RANK": "0", "STOP": str(tmp_path / "stop")}
    how = Patience(wait_s=0, signal=15, grace_s=30, peer_wait_s=30)
    ending = run_script(
        python(text), tmp_path, [environment], stop_file=tmp_path / "stop", patience=how, look=lambda: True
    )
    assert (ending.state, ending.code, ending.asked) == ("stopped", 75, True)


def test_sigterm_from_outside_reaches_all_and_is_no_good_end(tmp_path: Path) -> None:
    """As scancel does: the ranks and their parent get it at once, and Lightning ends with 0."""
    text = "import os, signal, sys, time\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(0.1)\nsys.exit(0)"
    ending = end_of(tmp_path, text, how=Patience(wait_s=30, signal=15, grace_s=30, peer_wait_s=30))
    assert (ending.state, ending.asked) == ("stopped", True)


def test_the_signal_goes_to_the_program_behind_a_shell_and_not_to_its_workers(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)\n"
        "    worker.start()\n"
        "    def stop(*_):\n"
        "        time.sleep(0.3)\n"
        "        open('saved', 'w').write(f'worker lives: {worker.is_alive()}')\n"
        "        sys.exit(75)\n"
        "    signal.signal(signal.SIGTERM, stop)\n"
        "    open(os.environ['STOP'], 'w').close()\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "NODE_RANK": "0", "STOP": str(tmp_path / "stop")}
    ending = run_script(
        ["bash", "-c", f"{sys.executable} train.py; exit $?"], tmp_path, [environment], stop_file=tmp_path / "stop",
        patience=Patience(wait_s=0.2, signal=15, grace_s=30, peer_wait_s=30), look=lambda: False,
    )  # fmt: skip
    assert (ending.state, ending.code, ending.asked) == ("stopped", 75, True)
    assert (tmp_path / "saved").read_text() == "worker lives: True"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("rank 0: exit code 1: MemoryError", "oom"),
        ("rank 0: exit code 1: numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8 TiB", "oom"),
        ("rank 0: exit code 1: torch.OutOfMemoryError: CUDA out of memory", "code_error"),
        ("rank 0: exit code 1: KeyError: 'x'", "code_error"),
    ],
)
def test_more_memory_helps_where_the_hosts_is_used_up(words: str, found: str) -> None:
    assert _class_of(ScriptFailedError(words, code=1)) == found


def test_silence_counts_only_where_a_limit_is_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert end_of(tmp_path, "import time; time.sleep(2)").state == "done"
    text = "import time\nfor _ in range(4): print('alive'); time.sleep(0.5)"
    assert end_of(tmp_path, text, silent_limit_s=30).state == "done"
    assert capfd.readouterr().out.count("alive") == 4
    with pytest.raises(HungError, match=r"rank 0 has written nothing for \d+ s \(allowed: 1 s\)"):
        end_of(tmp_path, "import time; time.sleep(60)", silent_limit_s=1)
    assert "stack of pid" in capfd.readouterr().out


# -- the folder -------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    (folder / "sub").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "big").write_text("data")
    (folder / "sub" / "train.py").write_text("print('one')")
    git(folder, "init")
    git(folder, "add", "sub")
    git(folder, "commit", "-m", "one")
    (folder / "sub" / "train.py").write_text("print('two')")
    return folder


def test_tracked_files_are_copied_as_they_are_and_the_rest_is_linked(repository: Path, tmp_path: Path) -> None:
    tree = tree_of(repository / "sub")
    assert tree is not None and tree.root == repository
    copy_tree(tree, tmp_path / "copy")
    (repository / "sub" / "train.py").write_text("print('three')")
    assert (tmp_path / "copy" / "sub" / "train.py").read_text() == "print('two')"
    assert (tmp_path / "copy" / "data").is_symlink() and (tmp_path / "copy" / "data" / "big").read_text() == "data"


# -- a run here -------------------------------------------------------------------------------------------------------


def phenomhpc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phenomhpc", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def the_run(folder: Path) -> RunPaths:
    (root,) = (folder / "runs").iterdir()
    return RunPaths(root)


def test_a_script_run_here_has_the_variables_and_its_commit_is_recorded(repository: Path) -> None:
    text = (
        "import json, os, pathlib\n"
        "ours = {k: v for k, v in os.environ.items() if k.startswith('PHENOMHPC_') or k in ('RANK', 'WORLD_SIZE')}\n"
        "pathlib.Path(os.environ['PHENOMHPC_OUTPUT'], f'seen-{os.environ[\"RANK\"]}.json').write_text(json.dumps(ours))\n"
    )
    (repository / "sub" / "train.py").write_text(text)
    done = phenomhpc(repository / "sub", "run", "ranks_per_node=2", "--", sys.executable, "train.py")
    assert done.returncode == 0, done.stderr
    run = the_run(repository / "sub")
    seen = [json.loads((run.output / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["RANK"] for each in seen] == ["0", "1"] and seen[0]["WORLD_SIZE"] == "2"
    assert seen[0]["PHENOMHPC_RUN_DIR"] == str(run.root) and seen[0]["PHENOMHPC_CHECKPOINTS"] == str(run.checkpoints)
    assert {"PHENOMHPC_ATTEMPT", "PHENOMHPC_RESTARTS", "PHENOMHPC_STOP_FILE"} <= set(seen[0])
    code = read_provenance(run)["script_code"]
    assert len(code["commit"]) == 40 and "import json" in code["diff"] and code["folder"] == "sub"


def test_a_failure_is_an_event_with_the_traceback_and_the_scripts_exit_code(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def f():\n    raise KeyError('treatment')\nf()\n")
    done = phenomhpc(tmp_path, "run", "--", sys.executable, "train.py")
    assert done.returncode == 1 and "KeyError: 'treatment'" in done.stderr
    run = the_run(tmp_path)
    failed = [event for event in read_events(run) if event["event"] == "failed"][-1]
    assert (failed["class"], failed["exit_code"]) == ("code_error", 1)
    assert failed["traceback"].startswith("Traceback") and failed["traceback"].endswith("KeyError: 'treatment'")
    assert (read_outcome(run) or {})["state"] == "failed"
    assert "in f" in phenomhpc(tmp_path, "why", run.id).stdout


def test_a_dry_run_prints_the_script_and_refuses_what_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    done = phenomhpc(
        tmp_path, "submit", "run", "--nodes", "2", "--dry-run", "--", sys.executable, "train.py", "--dry-run"
    )
    assert done.returncode == 0 and "#SBATCH --nodes=2" in done.stdout, done.stderr
    done = phenomhpc(tmp_path, "submit", "run", "--dry-run", "--", sys.executable, "gone.py")
    assert done.returncode == 2 and "run: gone.py: no such file in" in done.stderr
    assert not (tmp_path / "runs").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run: what to run is missing; give it behind --, e.g. phenomhpc run -- python train.py"),
        (["cluster.min_nodes=1", "cluster.nodes=2", "--", sys.executable], "a script keeps its number of nodes; give nodes=2"),
        (["--", "no-such-program"], "run: no-such-program: no such program here; is its environment activated, or its path right?"),
        (["--", sys.executable, "gone.py"], "run: gone.py: no such file in "),
        (["--workdir", "gone", "--", sys.executable], "gone: no such folder; the command is run there"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_line_and_leaves_no_run(tmp_path: Path, words: list[str], message: str) -> None:
    done = phenomhpc(tmp_path, "run", *words)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").is_dir() or not list((tmp_path / "runs").iterdir())


def test_a_tree_that_cannot_be_copied_is_one_line_and_leaves_no_half_copy(repository: Path, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "nowhere" / "run")
    (tmp_path / "nowhere").touch()  # a file where a folder is needed
    described = {"script_code": {"root": str(repository), "copied": True}}
    with pytest.raises(
        WorkError, match=r"cannot be copied: Not a directory; snapshot_code=false runs it where it lies"
    ):
        copy_script(described, paths.script_code, silent())
    assert not paths.script_code.exists()
