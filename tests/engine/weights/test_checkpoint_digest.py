"""The digest of a checkpoint: the same wherever it lies, another one for other weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from tokenbus.engine.weights.checkpoint import checkpoint_digest

if TYPE_CHECKING:
    from pathlib import Path


def test_digest_is_that_of_the_weights(tmp_path: Path) -> None:
    """A copy has the digest of its origin; one of which a tensor was tuned a little has not."""
    drawn = torch.randn(512, 1024)
    tuned = drawn * 1.001
    for name, tensor in (("here", drawn), ("there", drawn), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.zeros(300_000), "b": tensor}, tmp_path / name / "model.safetensors")
    digests = {name: checkpoint_digest(tmp_path / name) for name in ("here", "there", "tuned")}
    assert digests["here"] == digests["there"]
    assert digests["here"] != digests["tuned"]
    assert len(digests["here"]) == 12
