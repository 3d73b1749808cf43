"""phenomhpc checkpoints: what there is, as one file for others, and no more than is wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.models.checkpoint import checkpoint_digest, damage, load_encoder, newest_committed, read_meta
from phenomhpc.models.export import export_weights
from phenomhpc.runs import TaskContext
from phenomhpc.train.named import named_checkpoint
from phenomhpc.train.retention import note_scores
from tests.unit.embed_store import make_screen
from tests.unit.test_train_checkpoints import _truncate, ctx, of, state_after

__all__ = ["ctx"]


def phenomhpc(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phenomhpc.cli.main", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_the_list_says_which_are_usable_and_gc_leaves_what_is_wanted(ctx: TaskContext) -> None:
    for step in (10, 20, 30, 40, 50):
        of(ctx, keep=9).save(state_after(step))
    note_scores(ctx.paths.checkpoints, 20, {"val_loss": 0.25}, token="t")
    _truncate(ctx.paths.checkpoints / "step-00000010")
    _truncate(ctx.paths.checkpoints / "step-00000050")

    listed = phenomhpc("checkpoints", "list", ctx.paths.root, "--json")
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)["checkpoints"]
    assert [(row["step"], row["damage"] is None) for row in rows] == [
        (10, False), (20, True), (30, True), (40, True), (50, False)
    ]  # fmt: skip
    assert "bytes, not" in rows[0]["damage"] and rows[1]["scores"] == {"val_loss": 0.25} and rows[1]["ranks"] == 1
    table = phenomhpc("checkpoints", "list", ctx.paths.checkpoints).stdout
    assert "step-00000030" in table and "val_loss" in table and "usable" in table

    words = ("checkpoints", "gc", ctx.paths.root, "--keep", 1, "--every", 20)
    tried = phenomhpc(*words, "--dry-run", "--json")
    assert [entry["name"] for entry in json.loads(tried.stdout)["would_delete"]] == ["step-00000010", "step-00000030"]
    assert len(list(ctx.paths.checkpoints.glob("step-*"))) == 5
    done = phenomhpc(*words)
    assert done.returncode == 0 and "2 checkpoint(s)" in done.stdout
    # The torn step 50 is newer than the newest usable one, and left for whoever finds it.
    left = sorted(path.name for path in ctx.paths.checkpoints.glob("step-*"))
    assert left == ["step-00000020", "step-00000040", "step-00000050"]
    newest = newest_committed(ctx.paths.checkpoints, lambda text: None)
    assert newest is not None and newest.name == "step-00000040"


def test_a_run_that_is_not_there_is_one_line_and_an_empty_one_says_so(ctx: TaskContext, tmp_path: Path) -> None:
    missing = phenomhpc("checkpoints", "list", "nothing", "--runs", tmp_path)
    assert missing.returncode == 2 and missing.stderr.startswith("phenomhpc: ") and missing.stderr.count("\n") == 1
    assert phenomhpc("checkpoints", "list", ctx.paths.root).stdout == f"no checkpoints in {ctx.paths.checkpoints}\n"


def test_an_export_is_the_same_encoder(ctx: TaskContext, tmp_path: Path) -> None:
    folder, out = of(ctx).save(state_after(10)), tmp_path / "model.safetensors"
    done = phenomhpc("export", ctx.paths.root, "--to", "safetensors", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == checkpoint_digest(folder) == checkpoint_digest(out)
    assert named_checkpoint(str(out), tmp_path) == out and read_meta(out) == read_meta(folder)
    one, other = load_encoder(folder)[0], load_encoder(out)[0]
    for (name, mine), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    crops = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(one.encode(crops), other.encode(crops))
    again = tmp_path / "again.safetensors"
    export_weights(out, again)
    assert again.read_bytes() == out.read_bytes()


def test_a_damaged_export_is_refused_in_one_line(ctx: TaskContext, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    export_weights(of(ctx).save(state_after(10)), out)
    whole = out.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) * 3 // 4] ^= 1
    out.write_bytes(flipped)
    with pytest.raises(WorkError, match="weights are not those that were saved"):
        load_encoder(out)
    for content in (whole[: len(whole) // 2], b"", b"\xff" * 64, b"{}"):
        out.write_bytes(content)
        with pytest.raises(UsageError, match=r"no whole \.safetensors file") as caught:
            load_encoder(out)
        assert "\n" not in str(caught.value) and str(out) in str(caught.value)
    from safetensors.torch import save

    out.write_bytes(save({"a": torch.zeros(2)}))
    with pytest.raises(UsageError, match="its metadata has no phenomhpc"):
        load_encoder(out)


def test_an_export_needs_its_own_name_and_a_whole_checkpoint(ctx: TaskContext, tmp_path: Path) -> None:
    folder = of(ctx).save(state_after(10))
    with pytest.raises(UsageError, match=r"--out .*model\.bin: weights are exported as \.safetensors"):
        export_weights(folder, tmp_path / "model.bin")
    _truncate(folder)
    assert damage(folder) is not None
    with pytest.raises(WorkError, match="choose another step"):
        export_weights(folder, tmp_path / "model.safetensors")
    assert not list(tmp_path.glob("model*"))


def test_embedding_takes_an_export_and_gives_the_same_embeddings(tmp_path: Path) -> None:
    screen = make_screen(tmp_path)
    newest = newest_committed(screen.checkpoint.checkpoints, pytest.fail)
    assert newest is not None
    export_weights(newest, tmp_path / "model.safetensors")
    tables = []
    for checkpoint in (str(newest), str(tmp_path / "model.safetensors")):
        paths, _ = screen.embed(checkpoint=checkpoint, baselines=[])
        tables.append({path.name: path.read_bytes() for path in paths.embeddings.glob("*.parquet")})
    assert len(tables[0]) == 3 and tables[0] == tables[1]
