"""pretrain: masked-autoencoder pretraining as one gang, a task per node; then what the model completes, as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config.training import PretrainConfig
from phenomhpc.errors import WorkError
from phenomhpc.jobs.base import GangPlan, Summary, TaskOutcome
from phenomhpc.models.costs import model_cost
from phenomhpc.runs import commit, committing, read_events

if TYPE_CHECKING:
    import pyarrow as pa

    from phenomhpc.crops import Sampler
    from phenomhpc.crops.corpus import Corpus
    from phenomhpc.progress import Progress
    from phenomhpc.runs import RunPaths, TaskContext, Unit

Images = NDArray[np.float32]
# The first visits of the order, taken without flips: the same crops in every run of the same store, seed and crop size.
SHOWN_CROPS = 6
USUAL_CHANNELS = 6


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Crops f32[n, C, h, w], standardised: as they are, as the model sees them, as it completes them."""

    original: Images
    masked: Images
    reconstructed: Images


def plan(config: PretrainConfig, paths: RunPaths) -> GangPlan:
    """One task per node.  Raises UsageError for a store, snapshot, filter or architecture that cannot be trained on."""
    from phenomhpc.models.checkpoint import newest_committed
    from phenomhpc.models.mae import outline_mae
    from phenomhpc.train.begin import require_beginning
    from phenomhpc.train.data import CropSource
    from phenomhpc.train.loop import require_trainable
    from phenomhpc.train.named import named_checkpoint
    from phenomhpc.train.probe import wells_of
    from phenomhpc.train.tracking import require_tracking
    from phenomhpc.train.validation import require_validation

    require_trainable(config)
    require_backend(config)
    require_tracking(config)
    source = CropSource.open(config)
    if config.data.illumination == "apply":
        source.corpus.require_light()
    model = outline_mae(source.num_channels, **config.model.model_dump())
    if config.init_from is not None and newest_committed(paths.checkpoints) is None:
        require_beginning(named_checkpoint(config.init_from, Path(config.runs)), model, config.adapt_channels)
    require_validation(config, source)
    wells_of(config, source)
    return GangPlan(num_nodes=config.cluster.nodes)


def require_backend(config: PretrainConfig) -> None:
    """Raise UsageError where data.backend needs what is not installed; what a container has is not seen from here."""
    if config.data.backend == "dali" and config.cluster.container is None:
        from phenomhpc.crops.dali import require_dali

        require_dali()


def num_parameters(config: PretrainConfig) -> int:
    """About the model's number of parameters, for so many channels as are usual; without torch for transformers."""
    return model_cost(config.model.model_dump(), USUAL_CHANNELS).parameters


def output_bytes(config: PretrainConfig) -> int:
    """About what the checkpoints of a run take: weights, the optimiser's moments and the weights' average in fp32, those kept and
    one in the making."""
    copies = {"lion": 2, "adamw": 3}[config.optim.name] + (config.optim.ema is not None)
    kept, steps = config.checkpoint, config.optim.steps
    made = -(-steps // kept.every_steps)
    # A step that both cadences share is saved and kept for good.
    for_good = 0 if kept.keep_every is None else steps // math.lcm(kept.keep_every, kept.every_steps)
    held = kept.keep + 1 + for_good + (kept.keep_best is not None)
    return 4 * copies * num_parameters(config) * min(made, held)


def workers(config: PretrainConfig, units: Sequence[Unit]) -> int:
    """One process, which starts this node's ranks itself."""
    return 1


def draw_crops(*crops: NDArray[np.float32]) -> bytes:
    """The PNG of `reconstruction_figure`; ranks are handed it by its name."""
    from phenomhpc.report import reconstruction_figure

    return reconstruction_figure(*crops).png()


def run(config: PretrainConfig, ctx: TaskContext) -> TaskOutcome:
    """This node's ranks, from the newest committed checkpoint to the last step.

    What holds when killed here: see `phenomhpc.train.loop`.
    """
    from phenomhpc.slurm.inside import is_ours
    from phenomhpc.train.launch import launch
    from phenomhpc.train.rounds import always_standing

    def standing() -> bool | None:
        return is_ours(str(ctx.job_id), ctx.start, ctx.hosts[ctx.node_rank])

    result = launch(config, ctx, always_standing if ctx.job_id is None else standing, draw_crops)
    return TaskOutcome(units_done=result.steps)


def finish(config: PretrainConfig, paths: RunPaths, progress: Progress) -> Summary:
    """Reconstructions of fixed crops (npz and png) and the run's page.  Raises WorkError when the last step is missing."""
    from phenomhpc.models.checkpoint import newest_committed, read_meta
    from phenomhpc.report import reconstruction_figure
    from phenomhpc.train.metrics import read_metrics

    folder = newest_committed(paths.checkpoints, progress.say)
    done = 0 if folder is None else read_meta(folder).step
    if folder is None or done < config.optim.steps:
        raise WorkError(f"run {paths.id}: {done} of {config.optim.steps} steps are committed; run again to go on")
    shown = complete_crops(config, folder)
    with committing(paths.reconstructions) as file:
        np.savez(file, original=shown.original, masked=shown.masked, reconstructed=shown.reconstructed)
    picture = reconstruction_figure(shown.original, shown.masked, shown.reconstructed)
    commit(paths.reconstructions.with_suffix(".png"), picture.png())
    metrics = read_metrics(paths.metrics)
    commit(paths.report, _page(config, paths, folder, shown, metrics))
    losses = [loss for loss in metrics["loss"].to_pylist() if math.isfinite(loss)]  # a step that was left out has none
    fell = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else "no finite loss"
    text = f"{done} steps of {config.optim.global_batch} crops, {fell}; checkpoint {folder}"
    damaged = {event["field"]: event["reason"] for event in read_events(paths) if event["event"] == "damaged"}
    return Summary(text=text, report=str(paths.report), set_aside=tuple(damaged.items()))


def complete_crops(config: PretrainConfig, folder: Path) -> Shown:
    """Fixed crops of the snapshot that a checkpoint was trained on, through its model."""
    import torch

    from phenomhpc.crops import Sampler
    from phenomhpc.crops.corpus import Corpus
    from phenomhpc.models.checkpoint import load_encoder
    from phenomhpc.models.standardise import standardise

    model, meta = load_encoder(folder)
    corpus = Corpus.open(config.store, meta.snapshot)
    sampler = Sampler(corpus.tables, seed=config.seed, crop_px=model.crop_px, flips=False)
    visit = np.arange(SHOWN_CROPS, dtype=np.int64)
    pixels = _read(corpus, sampler, visit, meta.illumination, config.data.reader)
    crops = standardise(torch.from_numpy(pixels), torch.tensor(meta.scale))
    noise = torch.from_numpy(sampler.mask_noise(visit, model.num_patches))
    images = model.reconstruct(crops, noise)
    return Shown(original=crops.numpy(), masked=images.masked.numpy(), reconstructed=images.reconstructed.numpy())


def _read(
    corpus: Corpus, sampler: Sampler, visit: NDArray[np.int64], illumination: str, through: str
) -> NDArray[np.generic]:
    """The first crop of each visit; another one stands in for what is damaged, as it did in training."""
    from phenomhpc.crops.mending import MendingReader, draws_of

    visits, edge = sampler.visits(visit), sampler.crop_px
    pixels = np.zeros((len(visit), len(corpus.channels), edge, edge), corpus.dtype)
    with corpus.reader(illumination, through=through) as reader:
        mended = MendingReader(reader, draws_of(sampler), max_damaged=1.0)
        for row, field_no in enumerate(visits.field_no):
            mended.read(int(field_no), int(visits.y[row, 0]), int(visits.x[row, 0]), pixels[row])
    return pixels


def data_words(metrics: pa.Table, global_batch: int) -> str:
    """How the crops came, of the median step; of older metrics only how long was waited for them."""

    def median(name: str) -> float:
        values = metrics[name].drop_null().to_numpy()
        return float(np.median(values)) if len(values) else np.nan

    waited = metrics["data_wait"].to_numpy() * metrics["crops_per_s"].to_numpy() / global_batch
    words = [f"{np.median(waited):.1%} of a step waits for crops"]
    for name, text in (
        ("data_mb_s", "{:,.0f} MB/s of pixels"),
        ("read_amplification", "{:.2f} bytes asked of the file system per byte of pixels"),
        ("cache_hit_share", "{:.0%} of the crops from caches on the nodes"),
    ):
        value = median(name)
        if np.isfinite(value) and (value or name != "cache_hit_share"):
            words.append(text.format(value))
    return "; ".join(words)


def _page(config: PretrainConfig, paths: RunPaths, folder: Path, shown: Shown, metrics: pa.Table) -> str:
    from phenomhpc.jobs.alarms import alarms_of
    from phenomhpc.jobs.training_page import compute_words, probe_sections, validation_sections
    from phenomhpc.models.checkpoint import read_meta
    from phenomhpc.models.mae import count_parameters, outline_mae
    from phenomhpc.report import Section, curves_figure, reconstruction_figure, render_report, themed
    from phenomhpc.train.validation import read_validations

    meta = read_meta(folder)
    counts = count_parameters(outline_mae(len(meta.channels), **meta.model))
    speed = np.median(metrics["crops_per_s"].to_numpy())
    facts: tuple[tuple[str, str], ...] = (
        ("model", f"{config.model.name}: encoder {counts['encoder']:,}, decoder {counts['decoder']:,} parameters"),
        ("channels", ", ".join(meta.channels)),
        ("steps", f"{meta.step:,} of {meta.global_batch} crops, {meta.world_size} rank(s) in the last attempt"),
        ("optimiser", f"{config.optim.name}, peak rate {config.optim.peak_lr:g}"),
        ("throughput", f"{speed:.3g} crops/s (median step)"),
        ("compute", compute_words(metrics)),
        ("data", data_words(metrics, meta.global_batch)),
        ("attempts", str(len({event["attempt"] for event in read_events(paths)}))),
        ("checkpoint", folder.name),
    )
    if meta.init_from is not None:
        facts += (("began with", f"weights of {meta.init_from['checkpoint']}"),)
    if meta.ema is not None:
        facts += (
            (
                "moving average",
                f"of the weights, decay {meta.ema:g}; pictures, validations and probes are the average's",
            ),
        )
    facts += tuple(("alarm", alarm) for alarm in alarms_of(read_events(paths)))
    crops = Section(
        title="Crops as they are, as the model sees them, as it completes them",
        text=(f"{config.model.mask_ratio:.0%} of the patches are hidden; the model draws them from the rest.",),
        pictures=(
            themed(
                reconstruction_figure,
                shown.original,
                shown.masked,
                shown.reconstructed,
                alt="rows of crops: original, masked, reconstructed",
            ),
        ),
    )
    curves = Section(
        title="Loss and throughput",
        pictures=(
            themed(curves_figure, metrics, read_validations(paths.validation), alt="loss and crops per second by step"),
        ),
    )
    sections = (
        Section(title="The run", facts=facts),
        crops,
        curves,
        *validation_sections(paths),
        *probe_sections(paths),
    )
    return render_report("Pretraining", sections, lead=f"Run {paths.id}")
