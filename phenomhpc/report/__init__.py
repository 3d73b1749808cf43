"""What a person looks at: pictures as PNG and SVG files, pages as one HTML file.  Values in, drawings or text out.

theme      colours and fonts, light and dark
figures    reconstructions, curves, recall
similarity maps as heatmaps: some perturbations, or a genome along its chromosomes
scatter    wells as points
scaling    scores against training FLOP
benchmarks numbers with intervals: beside baselines, over stages
neighbours what can be searched in a page (neighbours.js)
training   completions of the same crops step by step
page       sections to one self-contained page (report.html.j2; page.html.j2 is the frame of every page)
platemap   a plate's wells as a map of values or a montage
quality    the page on a screen's quality (quality.html.j2, quality.js)
"""

from phenomhpc.report.benchmarks import Measured, Panel, Series, panels_figure, spread_figure, way_figure
from phenomhpc.report.figures import (
    RecallPoint,
    channel_colours,
    curves_figure,
    false_colours,
    recall_figure,
    reconstruction_figure,
)
from phenomhpc.report.neighbours import Neighbours
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
from phenomhpc.report.scaling import Trend, scaling_figure
from phenomhpc.report.scatter import Colouring, scatter_figure
from phenomhpc.report.similarity import genome_figure, heatmap_figure
from phenomhpc.report.training import completions_figure

__all__ = [
    "Cell",
    "Colouring",
    "DriftView",
    "MeasureView",
    "Measured",
    "Neighbours",
    "OverviewCell",
    "OverviewRow",
    "Panel",
    "Picture",
    "PlateView",
    "QualityPage",
    "RecallPoint",
    "Scale",
    "Section",
    "Series",
    "Table",
    "Trend",
    "ValueMap",
    "channel_colours",
    "completions_figure",
    "curves_figure",
    "false_colours",
    "genome_figure",
    "heatmap_figure",
    "jpeg",
    "panels_figure",
    "recall_figure",
    "reconstruction_figure",
    "render_plate",
    "render_quality",
    "render_report",
    "scaling_figure",
    "scatter_figure",
    "spread_figure",
    "themed",
    "way_figure",
]
