"""Embedding by whatever is not fp32 torch: ONNX Runtime, half precision, compiled blocks, each behind its gate."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from phenomhpc.cli.bench import embed_table
from phenomhpc.embed.folder import COMPILED, EmbeddingsPaths, read_binding
from phenomhpc.embed.onnx import OnnxEncoder, choose_providers
from phenomhpc.embed.table import feature_columns, read_embeddings
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.embed_bench import ON_CPU, bench_embed
from phenomhpc.jobs.embed_encoders import onnx_content, onnx_facts
from phenomhpc.jobs.embed_source import Source
from phenomhpc.models.checkpoint import load_encoder
from phenomhpc.models.export import export_onnx
from phenomhpc.models.onnx_export import INPUT, export_encoder
from phenomhpc.models.standardise import standardise
from phenomhpc.progress import silent
from phenomhpc.runs import read_events
from tests.unit.embed_store import Screen, make_screen

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="the extra onnx is not installed")
LIMIT_S = 300


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    return make_screen(tmp_path_factory.mktemp("screen"), plates_per_experiment=2)


@pytest.fixture(scope="module")
def whole(screen: Screen) -> Path:
    """Every block in one pass."""
    out = screen.root / "whole"
    screen.embed(out=str(out), blocks=["all"])
    return out


@pytest.fixture(scope="module")
def exported(screen: Screen) -> bytes:
    config = screen.embed_config(backend="onnx", block=2)
    return onnx_content(config, Source.open(config))


def _features(folder: Path) -> np.ndarray:
    frame = read_embeddings(folder)
    return frame.select(feature_columns(frame)).to_numpy()


@needs_onnx
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_export_gives_what_torch_gives_for_any_number_of_crops(screen: Screen, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "encoder.onnx"
    source = Source.open(screen.embed_config())
    export_onnx(source.checkpoint, path, precision=dtype)
    encoder = OnnxEncoder(path.read_bytes(), str(path))
    assert encoder.providers == ("CPUExecutionProvider",) and encoder.widths == (16,)
    model, meta = load_encoder(source.checkpoint)
    for number in (1, 2, 3, 17, 64):
        shape = (number, len(meta.channels), 32, 32)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        with torch.inference_mode():
            expected = model.encode(standardise(torch.from_numpy(pixels), torch.tensor(meta.scale))).numpy()
        found = encoder.encode(pixels)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5 if dtype == "fp32" else 2e-2)
        padded = np.concatenate([pixels, np.zeros_like(pixels[:1])])
        np.testing.assert_allclose(encoder.encode(padded)[:number], found, atol=2e-5 if dtype == "fp32" else 2e-2)


@needs_onnx
def test_padding_the_last_batch_changes_no_bit(exported: bytes) -> None:
    encoder = OnnxEncoder(exported, "export")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 6, 32, 32), dtype=np.uint8)
    padded, other = pixels.copy(), pixels.copy()
    padded[5:], other[5:] = 0, 255 - pixels[5:]
    assert np.array_equal(encoder.encode(padded)[:5], encoder.encode(pixels)[:5])
    assert np.array_equal(encoder.encode(other)[:5], encoder.encode(pixels)[:5])


@needs_onnx
def test_what_onnx_runtime_cannot_do_is_one_line_with_a_way_out(exported: bytes) -> None:
    encoder = OnnxEncoder(exported, "export")
    with pytest.raises(
        WorkError, match=r"export: ONNX Runtime on CPUExecutionProvider fails on uint8 crops 4x6x31x31 \("
    ) as error:
        encoder.encode(np.zeros((4, 6, 31, 31), dtype=np.uint8))
    assert "\n" not in str(error.value) and str(error.value).endswith("device=cpu or backend=torch")


@needs_onnx
def test_an_encoder_without_an_onnx_form_is_refused(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(screen.embed_config())
    model, _ = load_encoder(source.checkpoint)
    own = model.encode_blocks

    def by_its_values(crops: torch.Tensor, *settings: object) -> torch.Tensor:
        return own(crops if crops.sum() > 0 else -crops, *settings)

    monkeypatch.setattr(model, "encode_blocks", by_its_values)
    with pytest.raises(UsageError, match=r"ONNX: torch cannot export this encoder \(.*\); use backend=torch") as error:
        export_encoder(model, onnx_facts(source, "fp32"))
    assert "\n" not in str(error.value)


@needs_onnx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_passes_its_gate_and_embeds_as_torch_does(
    screen: Screen, whole: Path, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "emb"
    paths, _ = screen.embed(out=str(out), backend="onnx", precision=precision, blocks=["all"], baselines=[])
    told = [event for event in read_events(paths) if event["event"] == "parity"]
    assert len(told) == 2 and all(event["min_cosine"] >= 0.9999 and event["num_wells"] == 16 for event in told)
    for number, folder in EmbeddingsPaths(out).blocks().items():
        reference = EmbeddingsPaths(whole).blocks()[number]
        a, b = _features(folder.root).astype(np.float64), _features(reference.root).astype(np.float64)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() >= 0.9999
    bound = read_binding(EmbeddingsPaths(out))
    assert bound is not None and (bound.backend, bound.dtype) == ("onnx", precision)
    with pytest.raises(UsageError, match=r"backend=onnx, asked for torch|dtype"):
        screen.embed(out=str(out), precision=precision, blocks=["all"], baselines=[])


def _broken(content: bytes, how: str) -> bytes:
    """An export of which one weight is not what it was: what a bug of an exporter would do."""
    import onnx

    proto = onnx.load_from_string(content)
    name = {"norm": "model.norm.weight", "patch": "model.patch_embed.bias"}[how]
    weight = next(entry for entry in proto.graph.initializer if entry.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] += 3.0 if how == "norm" else 20.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return bytes(proto.SerializeToString())


@needs_onnx
@pytest.mark.parametrize("how", ["norm", "patch"])
def test_a_broken_export_is_refused_with_the_figures(screen: Screen, exported: bytes, tmp_path: Path, how: str) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(exported)
    bad.write_bytes(_broken(exported, how))
    settings = {"backend": "onnx", "baselines": [], "runs": str(tmp_path / "runs")}
    with pytest.raises(UsageError, match=r"16 wells, 64 crops: least cosine to fp32 torch 0\.\d+ \(SYN") as error:
        screen.embed(out=str(tmp_path / "emb"), onnx=str(bad), **settings)
    assert "\n" not in str(error.value) and "use backend=torch precision=fp32" in str(error.value)
    assert not (tmp_path / "emb").exists()  # free for another backend
    screen.embed(out=str(tmp_path / "emb"), onnx=str(good), **settings)
    assert read_embeddings(tmp_path / "emb").height == 16


@needs_onnx
def test_a_file_of_another_checkpoint_or_none_at_all_is_refused(
    screen: Screen, exported: bytes, tmp_path: Path
) -> None:
    import onnx

    good, garbage = tmp_path / "good.onnx", tmp_path / "garbage.onnx"
    good.write_bytes(exported)
    garbage.write_bytes(b"\x00garbage" * 9)
    plain = tmp_path / "plain.onnx"
    proto = onnx.load_from_string(exported)
    del proto.metadata_props[:]
    plain.write_bytes(proto.SerializeToString())
    unloadable = tmp_path / "unloadable.onnx"
    proto = onnx.load_from_string(exported)
    proto.graph.node[0].op_type = "NoSuchOperator"
    unloadable.write_bytes(proto.SerializeToString())
    for settings, words in (
        ({"onnx": str(good), "block": 1}, r"has blocks=\(2,\), this run needs \(1,\)"),
        ({"onnx": str(good), "precision": "fp16"}, r"has dtype=fp32, this run needs fp16"),
        ({"onnx": str(garbage)}, r"no readable ONNX file .*; make it with phenomhpc export CKPT --to onnx"),
        ({"onnx": str(plain)}, r"its metadata has no phenomhpc; make it with"),
        ({"onnx": str(unloadable)}, r"ONNX Runtime cannot load it \(.*\); make it with .*, or use backend=torch"),
        ({"onnx": str(tmp_path / "none.onnx")}, r"No such file .*; make it with .*, or leave onnx out"),
        ({"precision": "bf16"}, r"backend=onnx has fp32 and fp16"),
        ({"compile": True}, r"with backend=torch only"),
    ):
        with pytest.raises(UsageError, match=words):
            screen.embed(out=str(tmp_path / "emb"), backend="onnx", baselines=[], **settings)
    assert not (tmp_path / "emb").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch calls deprecated
@pytest.mark.parametrize(("precision", "compiled"), [("bf16", False), ("fp16", False), ("fp32", True)])
def test_half_precision_and_compiled_blocks_pass_the_gate(
    screen: Screen, whole: Path, tmp_path: Path, precision: str, compiled: bool
) -> None:
    settings = {"precision": precision, "compile": compiled, "baselines": [], "runs": str(tmp_path / "runs")}
    near = {
        "min_cosine": 0.999,
        "max_recall_change": 0.05,
    }  # of 16 wells a single pair moves recall by more than a point
    out = tmp_path / "emb"
    if not compiled:
        with pytest.raises(UsageError, match=rf"precision={precision} does not give what fp32 torch gives: 16 wells"):
            screen.embed(out=str(out), **settings, min_cosine=1.0)
        assert not out.exists()
    paths, _ = screen.embed(out=str(out), **settings, **near)
    (told,) = [event for event in read_events(paths) if event["event"] == "parity"]
    assert (told["dtype"], told["backend"]) == (precision, COMPILED if compiled else "torch")
    assert told["num_pairs"] > 0 and abs(told["recall"] - told["reference_recall"]) <= near["max_recall_change"]
    a, b = _features(out).astype(np.float64), _features(whole).astype(np.float64)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert told["min_cosine"] == pytest.approx(cosine.min(), abs=1e-6 if compiled else 1e-4)
    assert not np.array_equal(a, b)
    bound = read_binding(EmbeddingsPaths(out))
    assert bound is not None and (bound.dtype, bound.backend) == (precision, told["backend"])
    with pytest.raises(UsageError, match="asked for"):
        screen.embed(out=str(out), baselines=[], runs=settings["runs"])


def test_half_of_the_gate_is_not_passed_in_silence(screen: Screen, tmp_path: Path) -> None:
    """A single well belongs together with none, so that recall cannot be looked at."""
    settings = {"precision": "bf16", "baselines": [], "gate_wells": 1, "runs": str(tmp_path / "runs")}
    settings |= {"out": str(tmp_path / "emb"), "min_cosine": 0.999}
    with pytest.raises(UsageError, match=r"cannot be held against fp32 torch: 1 wells.* max_recall_change=1"):
        screen.embed(**settings)
    assert not (tmp_path / "emb").exists()
    paths, _ = screen.embed(**settings, max_recall_change=1.0)
    (told,) = [event for event in read_events(paths) if event["event"] == "parity"]
    assert (told["relation"], told["num_pairs"], told["recall"], told["reference_recall"]) == ("", 0, None, None)


def test_a_gpu_without_bf16_is_refused_before_anything_is_made(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch tells of a GPU stands in for one: there is none here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UsageError, match=r"precision=bf16: Tesla T4 .*; use precision=fp16"):
        screen.embed(out=str(tmp_path / "emb"), precision="bf16", device="auto", runs=str(tmp_path / "runs"))
    assert not (tmp_path / "emb").exists()


@needs_onnx
def test_the_benchmark_holds_backends_against_their_bare_encoders(screen: Screen) -> None:
    cases = [case for case in ON_CPU if not case.compile]
    config = screen.embed_config(batch=8, gate_crops=1)
    found = bench_embed(config, cases, num_batches=2, passes=1, progress=silent())
    assert [(rate.backend, rate.device) for rate in found.rates] == [("torch", "CPU"), ("onnx", "CPUExecutionProvider")]
    assert all(rate.crops_per_s > 0 and rate.bare_crops_per_s > 0 and rate.share > 0 for rate in found.rates)
    assert found.rates[0].min_cosine == pytest.approx(1.0, abs=1e-12) and found.rates[0].recall_change == 0.0
    assert 0.9999 <= found.rates[1].min_cosine < 1.0 + 1e-9
    assert [row[0] for row in embed_table(found).rows] == ["torch", "onnx"]
    with pytest.raises(UsageError, match="has 32 crops, 8000 are asked for"):
        bench_embed(config, cases, num_batches=1000, passes=1, progress=silent())


def test_bench_embed_on_the_command_line(screen: Screen) -> None:
    words = ["bench", "embed", "--store", screen.store, "--checkpoint", screen.checkpoint.id, "--device", "cpu"]
    words += ["--batch", 8, "--batches", 2, "--passes", 1, "--runs", screen.root / "runs", "--backend", "torch"]

    def bench(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "phenomhpc", *map(str, words), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)

    done = bench("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["batch"], found["num_batches"], found["passes"]) == ("test", 8, 2, 1)
    (rate,) = found["rates"]
    assert (rate["backend"], rate["precision"], rate["device"]) == ("torch", "fp32", "CPU")
    assert rate["crops_per_s"] > 0 and rate["share"] > 0 and rate["min_cosine"] == pytest.approx(1.0, abs=1e-12)
    unknown = bench("--backend", "tpu")
    assert unknown.returncode == 2
    assert unknown.stderr == "phenomhpc: --backend tpu: there are torch, torch compiled, onnx\n"


def test_a_backend_that_cannot_be_run_here_is_left_out_with_its_reason(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no C compiler
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    config = screen.embed_config(batch=8, gate_crops=1)
    found = bench_embed(config, [ON_CPU[1], ON_CPU[0]], num_batches=2, passes=1, progress=silent())
    assert [rate.backend for rate in found.rates] == ["torch"]
    assert [name for name, _ in found.left_out] == ["torch compiled fp32"] and "C compiler" in found.left_out[0][1]
    with pytest.raises(UsageError, match="bench embed: torch compiled fp32: compile=true: there is no C compiler"):
        bench_embed(config, [ON_CPU[1]], num_batches=2, passes=1, progress=silent())


def test_providers_are_taken_in_order_of_presence() -> None:
    gpu = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    assert choose_providers(gpu, "auto") == [gpu[2], gpu[1], gpu[0]]
    assert choose_providers(gpu[:2], "cuda") == [gpu[1], gpu[0]]
    assert choose_providers(gpu, "cpu") == [gpu[0]]
    assert choose_providers([gpu[0], "AzureExecutionProvider"], "auto") == [gpu[0]]
    with pytest.raises(UsageError, match="reaches no GPU"):
        choose_providers([gpu[0]], "cuda")


@needs_onnx
def test_the_input_of_an_export_is_the_pixels_of_its_store(exported: bytes) -> None:
    import onnx

    given = next(entry for entry in onnx.load_from_string(exported).graph.input if entry.name == INPUT)
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value or dim.dim_param for dim in given.type.tensor_type.shape.dim] == ["batch", 6, 32, 32]
