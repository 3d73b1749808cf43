"""Plates as microscopes leave them: types, one reader per layout, decoding of planes, and synthetic plates."""

from phenomhpc.plates.find import find_plates, read_plate
from phenomhpc.plates.images import plane_shape, read_plane
from phenomhpc.plates.types import Channel, Field, Plate, PlateFolder, UnreadableImage, Well, plate_key

__all__ = [
    "Channel",
    "Field",
    "Plate",
    "PlateFolder",
    "UnreadableImage",
    "Well",
    "find_plates",
    "plane_shape",
    "plate_key",
    "read_plane",
    "read_plate",
]
