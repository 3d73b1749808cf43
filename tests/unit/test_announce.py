"""What is told of a run's end, and of the code it was submitted from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from phenomhpc.config import ClusterConfig, ConvertConfig
from phenomhpc.jobs.announce import announce
from phenomhpc.jobs.attempts import submission_of
from phenomhpc.runs import RunPaths, changed_files, read_events
from phenomhpc.runs.provenance import UNTRACKED_FILE_BYTES, untracked_files
from phenomhpc.slurm.render import render_notice, wants_mail

FINISHED = {"state": "finished", "exit_code": 3, "message": "2 plates, 1 set aside"}


def told(paths: RunPaths, on_end: str, outcome: dict[str, object]) -> list[object]:
    paths.root.mkdir(exist_ok=True)
    config = ConvertConfig(store="s", plates=("p",), cluster=ClusterConfig(on_end=on_end))
    announce(paths, config, outcome)
    return [event["problem"] for event in read_events(paths) if event["event"] == "announced"]


def test_a_command_is_run_in_the_run_directory_and_told_how_it_ended(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "r")
    words = 'echo "$PHENOMHPC_RUN $PHENOMHPC_KIND $PHENOMHPC_STATE $PHENOMHPC_EXIT_CODE $PHENOMHPC_MESSAGE" > told'
    assert told(paths, words, FINISHED) == [None]
    assert (paths.root / "told").read_text() == "r convert finished 3 2 plates, 1 set aside\n"


def test_a_command_that_fails_is_an_event_and_no_failure(tmp_path: Path) -> None:
    assert told(RunPaths(tmp_path / "r"), "echo no such channel >&2; exit 7", FINISHED) == [
        "exit code 7: no such channel"
    ]


def test_what_was_cancelled_runs_no_command(tmp_path: Path) -> None:
    assert told(RunPaths(tmp_path / "r"), "exit 1", {**FINISHED, "state": "cancelled"}) == []


@pytest.mark.parametrize(
    ("mail_type", "ended", "failed"),
    [
        (None, False, False),
        ("END", True, False),
        ("FAIL", False, True),
        ("end, fail", True, True),
        ("ALL", True, True),
        ("NONE", False, False),
    ],
)
def test_mail_is_for_the_run_and_not_for_its_tasks(
    mail_type: str | None, ended: bool, failed: bool, tmp_path: Path
) -> None:
    cluster = ClusterConfig(mail_type=mail_type, mail_user="me@lab")
    assert (wants_mail(cluster.mail_type, failed=False), wants_mail(cluster.mail_type, failed=True)) == (ended, failed)
    config = ConvertConfig(store="s", plates=("p",), cluster=cluster)
    notice = render_notice(submission_of(config, RunPaths(tmp_path / "r"), 1, None), 1)
    assert "#SBATCH --mail-type=FAIL" in notice and "--mail-user=me@lab" in notice and notice.endswith("exit 1\n")
    assert "--job-name=r-failed" in notice


def test_an_unknown_kind_of_mail_is_refused() -> None:
    with pytest.raises(ValidationError, match="mail_type=ARRAY_TASKS: there are ALL, END, FAIL, NONE"):
        ClusterConfig(mail_type="ARRAY_TASKS")


def test_changes_and_untracked_files_of_a_tree_are_known(tmp_path: Path) -> None:
    for words in (["init", "-q"], ["config", "user.email", "a@b"], ["config", "user.name", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "kept.py").write_text("x = 1\n")
    subprocess.run(["git", "-C", str(tmp_path), "add", "kept.py"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "commit", "-qm", "one"], check=True)
    assert changed_files(tmp_path) == [] and untracked_files(tmp_path) == {}
    (tmp_path / "kept.py").write_text("x = 2\n")
    (tmp_path / "new one.py").write_text("y = 1\n")
    (tmp_path / "large.py").write_text("#" * (UNTRACKED_FILE_BYTES + 1))
    (tmp_path / "picture.png").write_bytes(b"\x89")
    assert sorted(changed_files(tmp_path)) == ["kept.py", "large.py", "new one.py", "picture.png"]
    assert untracked_files(tmp_path) == {"large.py": None, "new one.py": "y = 1\n", "picture.png": None}
