"""The demo: synthetic plates through the whole pipeline on this machine, to one report with pictures.

    OUT/demo.yaml       the settings this folder was made with; other settings are refused, so that nothing is mixed
    OUT/raw/            the synthetic plates and what is known of them; written beside and renamed, so whole or absent
    OUT/store/  OUT/runs/  OUT/report.html

Running it again in the same folder goes on where it was; what has finished is kept.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from phenomhpc.config import PipelineConfig, dump, validate
from phenomhpc.config.overrides import assign, parse_override
from phenomhpc.config.recipes import compose_recipe
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.pipeline import check, finish, run_pipeline_here
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, commit, list_runs, make_folder, read_outcome

RECIPE = "demo"
SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class DemoPaths:
    """Names inside a demo's folder."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "demo.yaml"

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def annotations(self) -> Path:
        return self.raw / "annotations"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What a demo makes: the plates, and the pipeline they go through."""

    plates: SyntheticSpec
    pipeline: PipelineConfig

    def text(self) -> str:
        """demo.yaml: every setting."""
        plates = yaml.safe_dump({SYNTHETIC: dataclasses.asdict(self.plates)}, sort_keys=False)
        return plates + dump(self.pipeline)


def demo_of(out: Path, seed: int, overrides: Sequence[str]) -> Demo:
    """The demo of jobs/demo.yaml with `key=value` over it (`synthetic.num_plates=2`, `pretrain.optim.steps=100`).

    Raises UsageError, one line, for an unknown key or a wrong value, before anything is written.
    """
    paths = DemoPaths(root=out.absolute())
    tree = compose_recipe(RECIPE, {})
    for override in map(parse_override, overrides):
        top = override.key.split(".")[0]
        if top not in tree:
            raise UsageError(f"demo: {override.text}: no such key; it begins with one of {', '.join(tree)}")
        assign(tree, override.key, override.value)
    plates = _synthetic({**tree.pop(SYNTHETIC), "seed": seed})
    tree |= {
        "plates": [str(paths.raw)],
        "store": str(paths.root / "store"),
        "annotations": str(paths.annotations),
        "runs": str(paths.root / "runs"),
        "seed": seed,
    }
    pipeline = validate("pipeline", tree)
    assert isinstance(pipeline, PipelineConfig)
    check(pipeline)
    return Demo(plates=plates, pipeline=pipeline)


def _synthetic(values: dict[str, Any]) -> SyntheticSpec:
    known = [field.name for field in dataclasses.fields(SyntheticSpec)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.3)
            hint = f"nearest key: {SYNTHETIC}.{near[0]}" if near else f"keys here: {', '.join(known)}"
            raise UsageError(f"demo: {SYNTHETIC}.{key}={values[key]!r}: no such key; {hint}")
    try:
        return TypeAdapter(SyntheticSpec).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join([SYNTHETIC, *(str(part) for part in first["loc"])])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UsageError(f"demo: {place}: {message[:1].lower()}{message[1:]}") from error


def run_demo(out: Path, seed: int, overrides: Sequence[str], *, command: Sequence[str], progress: Progress) -> Path:
    """Make the demo in `out`; returns the path of its report.  Goes on with what an earlier start left there."""
    demo = demo_of(out, seed, overrides)
    paths = DemoPaths(root=out.absolute())
    _bind(paths, demo)
    if not paths.raw.is_dir():
        _write_plates(paths, demo, progress)
    run = _finished_run(demo.pipeline)
    if run is None:
        run, summary = run_pipeline_here(demo.pipeline, command=command, progress=progress)
    else:
        progress.say(f"the pipeline of these settings has finished already, as run {run.id}")
        summary = finish(demo.pipeline, run, progress)
    if summary.report is None:
        raise WorkError(f"demo {paths.root}: the pipeline ended without a report; run {run.id} tells what happened")
    commit(paths.report, Path(summary.report).read_bytes())
    return paths.report


def _bind(paths: DemoPaths, demo: Demo) -> None:
    text = demo.text()
    if paths.settings.is_file():
        if paths.settings.read_text() != text:
            raise UsageError(
                f"demo {paths.root}: was made with other settings ({_first_difference(paths.settings.read_text(), text)}); "
                "choose another --out, or remove the folder"
            )
        return
    strangers = [entry.name for entry in paths.root.iterdir()] if paths.root.is_dir() else []
    if strangers:
        raise UsageError(f"demo {paths.root}: is not empty ({strangers[0]}) and no demo; choose another --out")
    make_folder(paths.root)
    commit(paths.settings, text)


def _first_difference(there: str, here: str) -> str:
    lines = zip(there.splitlines(), here.splitlines(), strict=False)
    pair = next((pair for pair in lines if pair[0] != pair[1]), ("fewer settings", "more settings"))
    return f"{pair[0].strip()} there, {pair[1].strip()} asked for"


def _write_plates(paths: DemoPaths, demo: Demo, progress: Progress) -> None:
    plates = demo.plates
    progress.say(
        f"Painting: {plates.num_plates} plates of {plates.num_wells} wells, whose {plates.num_genes} genes change the cells in "
        "ways that are known"
    )
    partial = paths.root / "raw.partial"
    shutil.rmtree(partial, ignore_errors=True)
    write_plates(partial, demo.plates, progress)
    partial.rename(paths.raw)


def _finished_run(pipeline: PipelineConfig) -> RunPaths | None:
    """The newest run of exactly this pipeline that has finished."""
    text = dump(pipeline)
    for run in reversed(list_runs(Path(pipeline.runs))):
        outcome = read_outcome(run)
        if outcome and outcome["state"] == "finished" and run.run_yaml.read_text() == text:
            return run
    return None
