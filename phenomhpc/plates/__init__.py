"""Plates as microscopes leave them: types, one reader per layout, decoding of planes, and synthetic plates."""

from phenomhpc.plates.find import find_plates, read_plate
from phenomhpc.plates.images import (
    decode_plane,
    named_plane,
    plane_bytes,
    plane_name,
    plane_shape,
    plane_stat,
    raw_pixels,
    read_plane,
)
from phenomhpc.plates.types import (
    Channel,
    Field,
    Plane,
    Plate,
    PlateFolder,
    ReadOptions,
    Stack,
    UnreadableImage,
    Well,
    plate_key,
)

__all__ = [
    "Channel",
    "Field",
    "Plane",
    "Plate",
    "PlateFolder",
    "ReadOptions",
    "Stack",
    "UnreadableImage",
    "Well",
    "decode_plane",
    "find_plates",
    "named_plane",
    "plane_bytes",
    "plane_name",
    "plane_shape",
    "plane_stat",
    "plate_key",
    "raw_pixels",
    "read_plane",
    "read_plate",
]
