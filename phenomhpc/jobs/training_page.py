"""What the page of a pretraining shows of what was measured while it ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from phenomhpc.report import Section, Table, completions_figure, themed
from phenomhpc.report.training import MAX_TIMES, evenly

if TYPE_CHECKING:
    from phenomhpc.runs import RunPaths

MAX_ROWS = 20


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
