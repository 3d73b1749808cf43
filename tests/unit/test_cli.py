"""The command line: what it imports, how it reads words, how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from phenomhpc.cli.arguments import parse_minutes, spread_lists
from phenomhpc.errors import UsageError

HEAVY = {"torch", "zarr", "hydra", "submitit", "polars", "pydantic", "numpy", "matplotlib", "pyarrow"}


def phenomhpc(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phenomhpc", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["convert", "--help"],
        ["submit", "pretrain", "--help"],
        ["store", "--help"],
        ["store", "rechunk", "--help"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\nfrom phenomhpc.cli.main import build\n"
        f"try:\n    build()(args={words!r}, prog_name='phenomhpc')\n"
        "except SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage: phenomhpc" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_a_list_option_takes_the_words_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c=d").touch()
    words = ["convert", "--plates", "a", "b", "c=d", "/x=y", "--store", "s", "shard_mb=3"]
    expected = [
        "convert",
        *(word for path in ("a", "b", "c=d", "/x=y") for word in ("--plates", path)),
        "--store",
        "s",
        "shard_mb=3",
    ]
    assert spread_lists(words, ["--plates"]) == expected
    assert spread_lists(["--plates", "a", "shard_mb=3", "b"], ["--plates"]) == ["--plates", "a", "shard_mb=3", "b"]
    assert spread_lists(["--plates"], ["--plates"]) == ["--plates"]
    assert spread_lists(["convert", "--", "--plates", "a", "b"], ["--plates"]) == [
        "convert",
        "--",
        "--plates",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("1:30", 2),
        ("1:30:00", 90),
        ("0:00:10", 1),
        ("2-00", 2880),
        ("1-00:30:00", 1470),
        ("90m", 90),
        ("1.5h", 90),
        ("2d", 2880),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "0", "-5"])
def test_a_wrong_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        parse_minutes(text)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["convert"], 2, "phenomhpc: convert: plates is missing; give --plates"),
        (["convert", "--plates", "absent", "--store", "s"], 2, "absent"),
        (["pretrain", "--store", "absent"], 2, "absent"),
        (["embed", "--store", "absent", "--checkpoint", "nothing"], 2, "nothing"),
        (["store", "rechunk", "absent", "--to", "s"], 2, "absent: does not exist"),
        (["store", "rechunk", "absent"], 2, "phenomhpc: rechunk: to is missing; give --to"),
        (["pretrain", "optim.stepz=3"], 2, "nearest key: optim.steps"),
        (["config", "show", "pretend"], 2, "job pretend: no such job"),
        (["status", "nothing"], 2, "run 'nothing': not found"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2_and_leaves_nothing(
    words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = phenomhpc(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert said in lines[-1], done.stderr
    assert len(lines) == 1, done.stderr
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
