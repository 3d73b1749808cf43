"""phenomhpc: from raw Cell Painting plates to maps of biology, native to Slurm."""

__version__ = "0.1.0"
