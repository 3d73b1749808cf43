"""An exported encoder through ONNX Runtime: on TensorRT, on CUDA or on the CPU, the first that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.models.onnx_export import EXPORT_ANEW, INPUT, OUTPUT, OnnxFacts, read_facts, require_onnx

CPU = "CPUExecutionProvider"
# In order of preference; an operator that the first cannot do is done by the next.
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)


def choose_providers(present: Sequence[str], device: str) -> list[str]:
    """The execution providers to use, in order.  device: auto, cpu or cuda.  Raises UsageError for a GPU that none reaches."""
    found = [name for name in PROVIDERS if name in present and (device != "cpu" or name == CPU)]
    if device == "cuda" and found == [CPU]:
        raise UsageError(
            "embed: device=cuda: this ONNX Runtime reaches no GPU; install onnxruntime-gpu, or use device=auto or backend=torch"
        )
    return found


class OnnxEncoder:
    """A CropEncoder out of the bytes of an exported file."""

    on_host = False

    def __init__(self, content: bytes, name: str, *, device: str = "auto") -> None:
        """name: of the file, for messages.  Raises UsageError for a file that ONNX Runtime cannot load."""
        require_onnx()
        import onnxruntime

        self._name = name
        self.facts: OnnxFacts = read_facts(content, name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # what it optimised is of no use to anybody
        asked = choose_providers(onnxruntime.get_available_providers(), device)
        try:
            self._session: Any = onnxruntime.InferenceSession(content, options, providers=asked)
        except Exception as error:  # of no common kind
            raise UsageError(
                f"{name}: ONNX Runtime cannot load it ({_first(error)}); {EXPORT_ANEW}, or use backend=torch"
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        if device == "cuda" and self.providers == (CPU,):
            raise UsageError(
                f"embed: device=cuda: {asked[0]} could not be started here (its CUDA libraries are missing?); use device=auto, "
                "or backend=torch"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        return self.facts.widths

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Raises WorkError where ONNX Runtime cannot do it: a GPU's memory ends, a kernel of an execution provider fails."""
        try:
            features: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: pixels})[0]
        except Exception as error:  # of no common kind
            crops = "x".join(map(str, pixels.shape))
            raise WorkError(
                f"{self._name}: ONNX Runtime on {self.providers[0]} fails on {pixels.dtype} crops {crops} ({_first(error)}); use a "
                "smaller batch, device=cpu or backend=torch"
            ) from error
        return features


def _first(error: Exception) -> str:
    """The first line of what it says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
