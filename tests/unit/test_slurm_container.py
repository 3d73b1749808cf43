"""The scripts of jobs in containers, as text: they were never run in one."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.config import ClusterConfig, ConvertConfig, EmbedConfig, EvaluateConfig
from phenomhpc.jobs.attempts import submission_of
from phenomhpc.jobs.folders import bound_folders
from phenomhpc.jobs.preflight import invisible
from phenomhpc.runs import RunPaths
from phenomhpc.slurm.container import mounts_of, problem_of, runtime_of
from phenomhpc.slurm.render import render

PATHS = RunPaths(Path("/lab/runs/r"))


def srun_of(cluster: ClusterConfig) -> list[str]:
    """The words of the script's srun."""
    config = ConvertConfig(store="/data/my store", plates=("/raw/screen/*/P1", "/raw/other"), cluster=cluster)
    submission = submission_of(config, PATHS, 1, None, 2)
    script = render(submission, submission.chunks[0])
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    return shlex.split(next(line for line in script.splitlines() if line.startswith("srun ")))


def test_apptainer_runs_the_task_with_gpus_and_the_run_s_folders() -> None:
    words = srun_of(ClusterConfig(container="/img/torch.sif", gpus_per_node=2, container_mounts=("/scratch", "/a:/b")))
    at = words.index("apptainer")
    mounts = "/data/my store:/data/my store,/lab/runs:/lab/runs,/raw/other:/raw/other,/raw/screen:/raw/screen"
    assert words[at : at + 8] == [
        "apptainer", "exec", "--nv", "--bind", f"{mounts},/scratch:/scratch,/a:/b", "/img/torch.sif", "python3", "-u",
    ]  # fmt: skip
    assert not any(word.startswith("--container") for word in words)


def test_pyxis_is_told_by_options_of_srun() -> None:
    words = srun_of(ClusterConfig(container="/img/torch.sqsh"))
    assert "--container-image=/img/torch.sqsh" in words and "apptainer" not in words
    assert any(
        word.startswith("--container-mounts=/data/my store:/data/my store,/lab/runs:/lab/runs") for word in words
    )
    assert words.index("--container-image=/img/torch.sqsh") < words.index("python3")


def test_without_an_image_nothing_changes() -> None:
    words = srun_of(ClusterConfig())
    assert not {"apptainer", "python3"} & set(words) and not any("container" in word for word in words)


@pytest.mark.parametrize(
    ("image", "asked", "runtime"),
    [
        ("x.sif", "auto", "apptainer"),
        ("docker://a/b", "auto", "apptainer"),
        ("x.sqsh", "auto", "pyxis"),
        ("nvcr.io#nvidia/pytorch", "pyxis", "pyxis"),
    ],
)
def test_the_image_chooses_the_runtime(image: str, asked: str, runtime: str) -> None:
    assert runtime_of(ClusterConfig.model_validate({"container": image, "container_runtime": asked})) == runtime


def test_what_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    image = tmp_path / "x.sif"
    assert "no such file" in str(problem_of(ClusterConfig(container=str(image))))
    image.touch()
    assert str(problem_of(ClusterConfig(container=str(image)))).endswith(
        "apptainer is not installed here; nor is Pyxis"
    )
    program = tmp_path / "apptainer"
    program.touch()
    program.chmod(0o755)
    assert problem_of(ClusterConfig(container=str(image))) is None
    assert "this Slurm has no Pyxis" in str(problem_of(ClusterConfig(container="x#y", container_runtime="pyxis")))


def test_an_embedding_sees_its_checkpoint() -> None:
    config = EmbedConfig(store="/s", checkpoint="/lab/runs/p/checkpoints/step-1", out="/o")
    assert set(bound_folders(config, PATHS)) == {Path("/lab/runs"), Path("/s"), Path("/o"), Path(config.checkpoint)}


def test_an_exported_encoder_and_tables_beside_embeddings_are_seen(tmp_path: Path) -> None:
    found = bound_folders(EmbedConfig(store="/s", checkpoint="/c", out="/o", onnx="/x/l8.onnx"), PATHS)
    assert Path("/x") in found
    config = EvaluateConfig(embeddings="/e", annotations="/a", metadata="/m/wells.csv", unexpressed="/u/genes.txt")
    assert {Path("/m"), Path("/u")} < set(bound_folders(config, PATHS))
    named = [line.partition(":")[0] for line in invisible(config, PATHS)]
    assert named == ["/e", "/a", "/m/wells.csv", "/u/genes.txt"]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), max_size=6))
def test_every_folder_is_seen_through_exactly_one_mount(parts: list[list[str]]) -> None:
    folders = [Path("/", *names) for names in parts]
    mounts = [Path(mount.split(":")[0]) for mount in mounts_of(ClusterConfig(container="x.sif"), folders)]
    for folder in folders:
        assert sum(mount == folder or mount in folder.parents for mount in mounts) == 1
