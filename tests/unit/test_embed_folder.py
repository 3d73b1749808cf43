"""A folder of embeddings is bound to one encoder and one snapshot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.embed.folder import Binding, EmbeddingsPaths, bind, read_binding
from phenomhpc.errors import UsageError

BINDING = Binding(
    source="checkpoint",
    checkpoint="/runs/a/checkpoints/step-00000010",
    checkpoint_digest="c" * 64,
    store="/store",
    snapshot_digest="s" * 64,
    block=4,
    pooling="mean",
    dtype="fp32",
    backend="torch",
    channels=("dna", "er"),
    crop_px=64,
    num_features=96,
)


def test_a_binding_reads_back_as_it_was(tmp_path: Path) -> None:
    paths = EmbeddingsPaths(tmp_path)
    assert read_binding(paths) is None
    bind(paths, BINDING)
    assert read_binding(paths) == BINDING
    before = paths.binding.stat().st_mtime_ns
    bind(paths, BINDING)
    assert paths.binding.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint_digest", "d" * 64),
        ("snapshot_digest", "t" * 64),
        ("block", 3),
        ("pooling", "class"),
        ("dtype", "bf16"),
        ("backend", "onnx"),
        ("channels", ("er", "dna")),
    ],
)
def test_another_kind_of_embedding_is_refused_by_name(tmp_path: Path, field: str, value: Any) -> None:
    paths = EmbeddingsPaths(tmp_path)
    bind(paths, BINDING)
    with pytest.raises(UsageError, match=field) as error:
        bind(paths, replace(BINDING, **{field: value}))
    assert "\n" not in str(error.value)
    assert read_binding(paths) == BINDING


def test_a_store_or_checkpoint_that_moved_is_the_same(tmp_path: Path) -> None:
    paths = EmbeddingsPaths(tmp_path)
    bind(paths, BINDING)
    bind(paths, replace(BINDING, checkpoint="/elsewhere/step-00000010", store="/moved"))


def test_new_welcomes_a_grown_snapshot_but_no_other_checkpoint(tmp_path: Path) -> None:
    paths = EmbeddingsPaths(tmp_path)
    bind(paths, BINDING)
    grown = replace(BINDING, snapshot_digest="t" * 64)
    bind(paths, grown, new=True)
    assert read_binding(paths) == grown
    with pytest.raises(UsageError, match="checkpoint_digest"):
        bind(paths, replace(grown, checkpoint_digest="d" * 64), new=True)


def test_a_file_that_is_no_binding_is_refused(tmp_path: Path) -> None:
    paths = EmbeddingsPaths(tmp_path)
    paths.binding.write_text("{")
    with pytest.raises(UsageError, match=r"embeddings\.json"):
        bind(paths, BINDING)
