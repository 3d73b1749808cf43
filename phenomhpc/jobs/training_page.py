"""What the page of a pretraining shows of what was measured while it ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phenomhpc.report import Section, Table, completions_figure, themed
from phenomhpc.report.training import MAX_TIMES, evenly

if TYPE_CHECKING:
    import pyarrow as pa

    from phenomhpc.runs import RunPaths

MAX_ROWS = 20


def compute_words(metrics: pa.Table) -> str:
    """What the devices made of their time, of the median step; of older metrics nothing is known."""
    tflops, mfu, goodput = (metrics[name].drop_null().to_numpy() for name in ("tflops", "mfu", "goodput"))
    words = [f"{np.median(tflops):.3g} TFLOP/s a device (median step)"] if len(tflops) else []
    words += [f"MFU {np.median(mfu):.1%} of its published peak"] if len(mfu) else []
    words += [
        f"goodput {goodput[-1]:.1%}: the share of all time since the first start that went into steps that count"
    ] * bool(len(goodput))
    return "; ".join(words) or "not known"


def validation_sections(paths: RunPaths) -> list[Section]:
    """Losses of the validations, and the completions of their crops step by step; nothing where there were none."""
    from phenomhpc.train.validation import read_validations, shown_series

    rows = read_validations(paths.validation).to_pylist()
    if not rows:
        return []
    table = Table(
        caption="Validations",
        columns=("steps", "loss", "masked MSE", "Fourier", "seconds"),
        rows=tuple(
            (f"{row['step']:,}", row["val_loss"], row["val_mse"], row["val_fourier"], row["seconds"])
            for row in (rows[place] for place in evenly(len(rows), MAX_ROWS))
        ),
    )
    text = f"The loss over {rows[-1]['crops']:,} fixed crops of wells that are held out of training, masked alike every time."
    sections = [Section(title="Validation", text=(text,), tables=(table,))]
    series = shown_series(paths)
    if series:
        pictures = []
        for step, file in (series[place] for place in evenly(len(series), MAX_TIMES)):
            with np.load(file, allow_pickle=False) as arrays:
                original, masked = arrays["original"], arrays["masked"]
                pictures.append((step, arrays["reconstructed"]))
        steps = ", ".join(str(step) for step, _ in pictures)
        picture = themed(
            completions_figure,
            original,
            masked,
            pictures,
            alt=f"crops of held-out wells, as they are, masked, and completed after {steps} steps",
        )
        sections.append(Section(title="Held-out crops, completed better and better", pictures=(picture,)))
    return sections


def probe_sections(paths: RunPaths) -> list[Section]:
    """Accuracies of the linear probes; nothing where there were none."""
    from phenomhpc.train.probe import read_probes

    rows = read_probes(paths.probe).to_pylist()
    if not rows:
        return []
    table = Table(
        caption="Perturbations of held-out wells, told by a linear classifier",
        columns=("features of", "steps", "accuracy (95 % interval)"),
        rows=tuple(
            (
                row["source"],
                f"{row['step']:,}",
                (f"{row['accuracy']:.3f}", f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"),
            )
            for row in (rows[place] for place in evenly(len(rows), MAX_ROWS))
        ),
    )
    last = rows[-1]
    text = (
        f"{last['num_classes']} perturbations, learned on {last['num_train']} wells and told of {last['num_test']} that are held "
        f"out; guessing gets {1 / last['num_classes']:.3f}."
    )
    return [Section(title="Linear probe", text=(text,), tables=(table,))]
