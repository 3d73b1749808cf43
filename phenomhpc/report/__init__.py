"""What a person looks at: pictures as PNG bytes, pages as one HTML file.  Values in, bytes or text out.

theme      colours and fonts, light and dark
figures    reconstructions, curves, similarity heatmap, recall
training   completions of the same crops step by step
page       sections to one self-contained page (report.html.j2; page.html.j2 is the frame of every page)
platemap   a plate's wells as a map of values or a montage
quality    the page on a screen's quality (quality.html.j2, quality.js)
"""

from phenomhpc.report.figures import (
    RecallPoint,
    channel_colours,
    curves_figure,
    false_colours,
    heatmap_figure,
    recall_figure,
    reconstruction_figure,
)
from phenomhpc.report.page import Cell, Picture, Section, Table, render_report, themed
from phenomhpc.report.platemap import Scale, jpeg
from phenomhpc.report.quality import (
    DriftView,
    MeasureView,
    OverviewCell,
    OverviewRow,
    PlateView,
    QualityPage,
    ValueMap,
    render_plate,
    render_quality,
)
from phenomhpc.report.training import completions_figure

__all__ = [
    "Cell",
    "DriftView",
    "MeasureView",
    "OverviewCell",
    "OverviewRow",
    "Picture",
    "PlateView",
    "QualityPage",
    "RecallPoint",
    "Scale",
    "Section",
    "Table",
    "ValueMap",
    "channel_colours",
    "completions_figure",
    "curves_figure",
    "false_colours",
    "heatmap_figure",
    "jpeg",
    "recall_figure",
    "reconstruction_figure",
    "render_plate",
    "render_quality",
    "render_report",
    "themed",
]
