"""Synthetic plates: biology.py says what the cells know, painting.py draws them, writing.py writes them as raw plates."""

from phenomhpc.plates.synthetic.biology import CHANNELS, LATENTS, Gene, SyntheticSpec, genes_of
from phenomhpc.plates.synthetic.writing import write_plates

__all__ = ["CHANNELS", "LATENTS", "Gene", "SyntheticSpec", "genes_of", "write_plates"]
