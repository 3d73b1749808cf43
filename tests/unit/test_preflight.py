"""The preflight's own judgement: folders, space, file systems, hours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from phenomhpc.config import ClusterConfig, ConvertConfig, EvaluateConfig, PretrainConfig, RunConfig
from phenomhpc.errors import UsageError
from phenomhpc.jobs import preflight
from phenomhpc.jobs.base import ArrayPlan
from phenomhpc.jobs.preflight import Space, file_system_of, folder_problems, invisible, prepare, refusal_of, space_of
from phenomhpc.jobs.pretrain import num_parameters, output_bytes
from phenomhpc.models.mae import count_parameters, outline_mae
from phenomhpc.runs import RunPaths
from phenomhpc.slurm.facts import ClusterFacts, Partition

MOUNTS = "overlay / overlay rw 0 0\nhead:/x /shared nfs4 rw 0 0\ntmpfs /shared/my\\040tmp tmpfs rw 0 0\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "overlay"),
        ("/shared/runs", "nfs4"),
        ("/shared", "nfs4"),
        ("/sharedx", "overlay"),
        ("/shared/my tmp/a", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_deepest_mount(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    config = ConvertConfig(store=str(file / "store"), plates=("x",), runs=str(tmp_path / "runs"))
    found = folder_problems(config, RunPaths(tmp_path / "runs" / "r"))
    assert found == [f"store={file / 'store'}: {file} is no folder; choose another"]


def test_space_is_refused_with_both_figures(tmp_path: Path) -> None:
    assert Space(folder=tmp_path, output_bytes=2 * 2**30, free_bytes=3 * 2**30).problem is None
    problem = Space(folder=tmp_path, output_bytes=5 * 2**30, free_bytes=3 * 2**30).problem
    assert problem is not None and "estimated at 5 GiB, 3 GiB are free" in problem
    config = ConvertConfig(store=str(tmp_path / "not" / "yet"), plates=("x",))
    space = space_of(config, ArrayPlan(units=(), output_bytes=2**60), RunPaths(tmp_path / "runs" / "r"))
    assert space is not None and space.problem and str(tmp_path / "not" / "yet") in space.problem


def test_several_problems_are_a_line_each_and_one_is_one_line() -> None:
    assert str(refusal_of(["a: b; c"])) == "a: b; c"
    error = refusal_of(["a", "b", "a"])
    assert isinstance(error, UsageError) and str(error).splitlines() == [
        "2 problems, nothing was submitted:",
        "  a",
        "  b",
    ]


@pytest.mark.parametrize(("dim", "depth"), [(384, 12), (1024, 24), (1408, 40)])
def test_the_size_of_checkpoints_is_about_that_of_the_model(dim: int, depth: int) -> None:
    model = {"dim": dim, "depth": depth, "heads": 4}
    config = PretrainConfig.model_validate(
        {"store": "s", "model": model, "optim": {"steps": 100}, "checkpoint": {"every_steps": 10}}
    )
    counts = count_parameters(outline_mae(6, **config.model.model_dump()))
    assert num_parameters(config) == pytest.approx(counts["encoder"] + counts["decoder"], rel=0.1)
    assert output_bytes(config) == 4 * 2 * 4 * num_parameters(
        config
    )  # fp32; Lion's moment beside the weights; 3 kept and 1


def test_a_task_names_the_store_that_it_does_not_see(tmp_path: Path) -> None:
    config = PretrainConfig(store=(str(tmp_path / "gone"),))
    assert len(invisible(config, RunPaths(tmp_path / "r"))) == 1
    (tmp_path / "gone").mkdir()
    assert invisible(config, RunPaths(tmp_path / "r")) == []


@pytest.mark.parametrize("kind", ["convert", "rechunk", "embed", "pretrain", "evaluate"])
def test_the_plan_of_a_dry_run_imports_no_torch(kind: str) -> None:
    code = (
        "import sys, phenomhpc.jobs.submit, phenomhpc.jobs.preflight\n"
        f"from phenomhpc.jobs.base import load; load({kind!r})\n"
        "print([name for name in ('torch', 'submitit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_an_elastic_gang_runs_in_no_container(tmp_path: Path) -> None:
    config = PretrainConfig.model_validate(
        {
            "store": (str(tmp_path),),
            "runs": str(tmp_path / "runs"),
            "cluster": {"nodes": "2:4", "container": "docker://x/y"},
        }
    )
    with pytest.raises(UsageError, match=r"--nodes 2:4: .* with cluster.container give --nodes 4"):
        prepare(config, None, RunPaths(tmp_path / "runs" / "r"), light=True)


def test_a_dry_run_of_a_training_names_a_store_that_is_not_there(tmp_path: Path) -> None:
    store = tmp_path / "nope"
    config = PretrainConfig(store=(str(store),), runs=str(tmp_path / "runs"))
    with pytest.raises(UsageError, match=f"^store {store}: does not exist; phenomhpc convert makes one$"):
        prepare(config, None, RunPaths(tmp_path / "runs" / "r"), light=True)
    store.mkdir()
    assert prepare(config, None, RunPaths(tmp_path / "runs" / "r"), light=True).submission.gang


def test_a_task_names_the_embeddings_that_it_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    config = EvaluateConfig(embeddings=str(tmp_path / "gone"), annotations=str(tmp_path / "annotations"))
    (words,) = invisible(config, RunPaths(tmp_path / "runs" / "r"))
    assert words.startswith(f"{tmp_path / 'gone'}: is not there on ")


def test_with_require_clean_changes_that_are_not_committed_are_named(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()

    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tree, check=True, capture_output=True)

    def told(require_clean: bool) -> list[str]:
        cluster = ClusterConfig(require_clean=require_clean)
        config = RunConfig(command=("true",), workdir=str(tree), runs=str(tmp_path / "runs"), cluster=cluster)
        try:
            prepare(config, None, RunPaths(tmp_path / "runs" / "r"))
        except UsageError as error:
            return [line for line in str(error).splitlines() if f"{tree} has changes" in line]
        return []

    git("init", "-q")
    (tree / "train.py").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "x")
    assert told(True) == []
    (tree / "train.py").write_text("2\n")
    (tree / "new.py").touch()
    (line,) = told(True)
    assert "--require-clean: " in line and "train.py" in line and "new.py" in line
    assert told(False) == []


def test_an_environment_on_a_local_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partition = Partition(
        name="main",
        num_nodes=2,
        is_default=True,
        max_time_minutes=None,
        gpus_per_node=0,
        cpus_per_node=1,
        mem_mb_per_node=1,
    )
    facts = ClusterFacts(name="c", version="22.05", partitions=(partition,), max_array_size=1001)
    monkeypatch.setattr(preflight, "file_system_of", lambda path, _: "xfs" if str(path) == sys.prefix else "nfs4")
    paths = RunPaths(tmp_path / "runs" / "r")
    (words,) = preflight._warnings(ConvertConfig(plates=("p",), store="s"), facts, paths)
    assert f"Python ({sys.prefix}) (xfs) may lie on a disk of this machine alone" in words and "store" not in words
    inside = ClusterConfig(container="image.sif")
    assert preflight._warnings(ConvertConfig(plates=("p",), store="s", cluster=inside), facts, paths) == (
        preflight.UNTRIED,
    )
