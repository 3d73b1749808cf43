"""crc32c of large data, three times as fast as google_crc32c has it: by compiled code where this processor has the instruction."""

from __future__ import annotations

from typing import Any

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

# Compiled code takes half a second to load: not for what is summed in less.
COMPILED_BYTES = 2**18


def crc32c(data: NDArray[Any], crc: int = 0) -> int:
    """The sum of what `crc` is the sum of, followed by the bytes of `data`, which lie together."""
    flat = data.reshape(-1).view(np.uint8)
    if flat.nbytes >= COMPILED_BYTES and flat.flags.writeable:  # compiled code takes no other
        from phenomhpc.store import crc_loops

        if crc_loops.HAS_CRC:
            return int(crc_loops.crc32c(crc, flat, crc_loops.MOVED, crc_loops.SINGLE))
    return int(extend(crc, flat))
