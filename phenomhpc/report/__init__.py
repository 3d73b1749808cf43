"""What a person looks at: pictures as PNG bytes, pages as one HTML file.  Values in, bytes or text out.

theme      colours and fonts, light and dark
figures    reconstructions, curves, similarity heatmap, recall
page       sections to one self-contained page (report.html.j2)
"""

from phenomhpc.report.figures import (
    RecallPoint,
    curves_figure,
    heatmap_figure,
    recall_figure,
    reconstruction_figure,
)
from phenomhpc.report.page import Cell, Picture, Section, Table, render_report, themed

__all__ = [
    "Cell",
    "Picture",
    "RecallPoint",
    "Section",
    "Table",
    "curves_figure",
    "heatmap_figure",
    "recall_figure",
    "reconstruction_figure",
    "render_report",
    "themed",
]
