"""The digest of a checkpoint: cheap to take, and another one for other weights.

It tells apart workers that serve different weights under one name. All of a large model takes
minutes to read; what stands in the head of each file, and samples of its tensors, do not.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tokenbus.engine.weights.checkpoint import shards

if TYPE_CHECKING:
    from pathlib import Path

# A head of a safetensors file names its tensors, and takes about 100 bytes for each.
_HEAD_BYTES = 65_536
# Tuned weights differ everywhere, so that few samples meet it.
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096


def checkpoint_digest(folder: Path) -> str:
    """Return 12 hexadecimal digits of the weights in a folder, wherever it lies.

    Raises: ModelBroken where there are none; OSError.
    """
    digest = hashlib.sha256()
    for file in shards(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HEAD_BYTES))
            for number in range(_NUM_SAMPLES):
                stream.seek(size * number // _NUM_SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]
