"""Settings: recipes, overrides, defaults, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from phenomhpc.config import JOBS, Layer, default_layers, dump, load_run_config, require, resolve
from phenomhpc.config.overrides import parse_override
from phenomhpc.config.recipes import choices, groups
from phenomhpc.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=true", True),
        ("a=null", None),
        ("a=", None),
        ("a=[1, x]", [1, "x"]),
        ("cluster.nodes=2:4", "2:4"),
        ("data.where=focus > 0.2", "focus > 0.2"),
        ("data.where=focus > 0.2 and plate == 'a: b'", "focus > 0.2 and plate == 'a: b'"),
        ("a=/data/x=y/z", "/data/x=y/z"),
        ("a='1'", "1"),
        ("a=x #1", "x #1"),
        ("a=#1", "#1"),
        ("a=key: value", "key: value"),
        ("a=- x", "- x"),
        ("a=2026-01-01", "2026-01-01"),
        ("a=@x", "@x"),
        ("a=> 3", "> 3"),
    ],
)
def test_a_value_means_what_it_says(text: str, value: object) -> None:
    assert parse_override(text).value == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("+a=1", r"leading \+ is not supported"),
        ("~a", "leading ~ is not supported"),
        ("a=${b}", "interpolation"),
        ("a", "write KEY=VALUE"),
        ("a b=1", "no key"),
        ("a={b: 1}", "one by one"),
    ],
)
def test_what_hydra_would_take_is_refused_with_the_way_out(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_override(text)


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_every_recipe_composes_and_survives_run_yaml(kind: str, tmp_path: Path) -> None:
    config = resolve(kind, {}, [], layers=[]).config
    (tmp_path / "run.yaml").write_text(dump(config))
    assert load_run_config(tmp_path / "run.yaml") == config


@pytest.mark.parametrize("group", ["model", "mask", "decoder", "data", "optim", "cluster"])
def test_every_choice_of_a_group_is_valid(group: str) -> None:
    assert group in groups()
    for choice in choices(group):
        resolve("pretrain", {}, [f"{group}={choice}"], layers=[])


def test_masks_and_decoders_change_any_model_and_nothing_else_of_it() -> None:
    def model(*words: str) -> dict[str, object]:
        return resolve("pretrain", {}, list(words), layers=[]).config.model.model_dump()  # type: ignore[union-attr]

    for name in ("mae_vit_l8", "ca_mae_vit_tiny"):
        plain, seen = model(f"model={name}"), set()
        for group, keys in (("mask", {"mask_ratio"}), ("decoder", {"decoder_dim", "decoder_depth", "decoder_heads"})):
            for choice in choices(group):
                other = model(f"model={name}", f"{group}={choice}")
                assert {key for key in plain if plain[key] != other[key]} <= keys, choice
                seen.add(str(other))
        assert len(seen) >= len(choices("mask")) + len(choices("decoder")) - 2  # one of each may be the model's own
    both = resolve("pretrain", {}, ["decoder=depth_2", "mask=ratio_90", "model.mask_ratio=0.8"], layers=[])
    assert both.config.model.mask_ratio == 0.8 and both.config.model.decoder_depth == 2  # type: ignore[union-attr]
    origins = [both.origins[f"model.{key}"] for key in ("decoder_depth", "mask_ratio", "decoder_dim")]
    assert origins == ["decoder=depth_2", "override", "recipe pretrain"]
    with pytest.raises(UsageError, match="decoder_depth=2: kind=unet_mae has no such setting"):
        resolve("pretrain", {}, ["model=unet_mae_small", "decoder=depth_2"], layers=[])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.stepz=3", r"optim.stepz=3: no such key; nearest key: optim.steps"),
        ("steps=3", r"steps=3: no such key; nearest key: optim.steps"),
        ("optim.steps=-3", r"optim.steps=-3: input should be greater than 0"),
        ("optim.steps=many", r"optim.steps='many': input should be a valid integer"),
        ("device=tpu", r"device='tpu': input should be 'auto', 'cpu' or 'cuda'"),
        ("model=mae_vit_l88", r"model=mae_vit_l88: no such recipe; there are .*did you mean model=mae_vit_l8"),
        ("model.patch_px=7", r"is no multiple of patch_px=7"),
        ("checkpoint=3", r"checkpoint is a group of settings; set one of checkpoint.every_steps"),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_value_and_nearest_key(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        resolve("pretrain", {}, [override], layers=[])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_later_sources_win_and_are_named(tmp_path: Path) -> None:
    site = {
        "paths": {"store": "/site/store"},
        "slurm": {"partitions": [{"name": "gpu", "default": True, "gpus_per_node": 8}]},
    }
    (tmp_path / "site.json").write_text(json.dumps(site))
    (tmp_path / "home" / "phenomhpc").mkdir(parents=True)
    (tmp_path / "home" / "phenomhpc" / "config.yaml").write_text("account: mine\nruns: /home/runs\n")
    (tmp_path / "phenomhpc.yaml").write_text("runs: /project/runs\n")
    layers = default_layers(
        discovered={"partition": "main", "qos": "normal"},
        folder=tmp_path,
        home=tmp_path / "home",
        environment={"PHENOMHPC_SITE": str(tmp_path / "site.json"), "PHENOMHPC_ACCOUNT": "theirs"},
    )
    resolved = resolve("pretrain", {"cluster.nodes": 2}, ["cluster.partition=debug"], layers=layers)
    config, origins = resolved.config, resolved.origins
    assert (config.cluster.qos, config.cluster.gpus_per_node, config.cluster.partition) == ("normal", 8, "debug")
    assert (config.cluster.account, config.runs, config.cluster.nodes) == ("theirs", "/project/runs", 2)
    assert config.store == ("/site/store",)  # type: ignore[union-attr]
    assert origins["cluster.qos"] == "Slurm"
    assert origins["store"].endswith("site.json")
    assert origins["runs"].endswith("phenomhpc.yaml")
    assert origins["cluster.account"] == "PHENOMHPC_*"
    assert origins["cluster.nodes"] == "flag"
    assert origins["cluster.partition"] == "override"
    assert origins["optim.name"].startswith("recipe")
    assert origins["precision"] in {"built in", "recipe pretrain"}


def test_a_default_of_an_unknown_name_is_refused_by_file_and_name(tmp_path: Path) -> None:
    (tmp_path / "phenomhpc.yaml").write_text("stor: /x\n")
    with pytest.raises(UsageError, match=r"phenomhpc.yaml: stor: no such default; did you mean store\?"):
        default_layers(folder=tmp_path, home=tmp_path, environment={})


def test_a_recipe_of_ones_own_uses_the_groups(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"defaults": [{"optim": choices("optim")[0]}, "_self_"], "seed": 7}))
    assert resolve("pretrain", {}, [], recipe=str(own), layers=[]).config.seed == 7
    with pytest.raises(UsageError, match="no such file"):
        resolve("pretrain", {}, [], recipe="absent.yaml", layers=[])
    own.write_text("seed: [")
    with pytest.raises(UsageError, match="does not compose"):
        resolve("pretrain", {}, [], recipe=str(own), layers=[])


def test_paths_are_absolute_once_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run-1").mkdir()
    config = resolve("embed", {"store": "s", "checkpoint": "run-1"}, ["out=o"], layers=[]).config
    assert config.store == str(tmp_path / "s") and config.out == str(tmp_path / "o")  # type: ignore[union-attr]
    assert config.checkpoint == str(tmp_path / "run-1") and config.runs == str(tmp_path / "runs")  # type: ignore[union-attr]
    assert resolve("embed", {"checkpoint": "run-2"}, [], layers=[]).config.checkpoint == "run-2"  # type: ignore[union-attr]


def test_a_missing_setting_names_its_flag_and_default() -> None:
    with pytest.raises(UsageError, match=r"embed: store is missing; give --store, or set store in ./phenomhpc.yaml"):
        require(resolve("embed", {}, [], layers=[]).config)
    layer = Layer(source="x", values={"store": "/s"})
    with pytest.raises(UsageError, match="checkpoint is missing"):
        require(resolve("embed", {}, [], layers=[layer]).config)


def test_a_recipe_given_as_a_whole_is_not_lost_beside_its_settings() -> None:
    words = ["pretrain.model=mae_vit_tiny", "pretrain.model.depth=2"]
    with pytest.raises(
        UsageError, match=r"was given as a whole; beside its settings write pretrain\.model\.recipe=mae_vit_tiny"
    ):
        resolve("pipeline", {}, words, layers=[])
    both = resolve("pipeline", {}, ["pretrain.model.recipe=mae_vit_tiny", "pretrain.model.depth=2"], layers=[]).config
    assert both.pretrain == {"model": {"recipe": "mae_vit_tiny", "depth": 2}}  # type: ignore[union-attr]
