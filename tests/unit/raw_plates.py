"""Small raw plates for tests: an index of Opera Phenix as text, and a synthetic screen."""

from __future__ import annotations

from pathlib import Path

from phenomhpc.plates.synthetic import SyntheticSpec

SMALL = SyntheticSpec(experiments=2, plate_rows=2, plate_columns=3, field_px=64, num_genes=4, num_unexpressed=1)


def phenix(
    folder: Path, images: str, plate: str = "<PlateRows>16</PlateRows><PlateColumns>24</PlateColumns>", head: str = ""
) -> Path:
    """A measurement with this index."""
    folder.mkdir(parents=True)
    text = (
        f'<?xml version="1.0"?>{head}<EvaluationInputData xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5"><Plates><Plate>'
        f"<PlateID>P1</PlateID>{plate}</Plate></Plates><Images>{images}</Images></EvaluationInputData>"
    )
    (folder / "Index.idx.xml").write_text(text)
    return folder


def image(channel: int, url: str, row: int = 1, column: int = 1, field: int = 1) -> str:
    place = f"<Row>{row}</Row><Col>{column}</Col><FieldID>{field}</FieldID><PlaneID>1</PlaneID>"
    return (
        f"<Image><URL>{url}</URL>{place}<ChannelID>{channel}</ChannelID><ChannelName>c{channel}</ChannelName></Image>"
    )
