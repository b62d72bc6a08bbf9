"""A sound checkpoint in a folder, to be broken, and the proof that it is refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

from tokenbus.engine.llm import LLM

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tokenbus.engine.errors import EngineError

UP_PROJ = "model.layers.0.mlp.up_proj"
Q_PROJ = "model.layers.0.self_attn.q_proj"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(slots=True)
class StoredCheckpoint:
    """A folder with a sound checkpoint, to be broken."""

    folder: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def read(self) -> StoredCheckpoint:
        """Read the tensors that lie in the folder."""
        self.tensors = load_file(self.folder / WEIGHTS)
        return self

    def save(self, **tensors: Tensor) -> None:
        """Save the tensors, and others by dotted names with `__` for the dots."""
        more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file(self.tensors | more, self.folder / WEIGHTS)

    def put(self, name: str, tensor: Tensor | None) -> None:
        """Save the tensors with another one in place of that of a name, or without it."""
        self.tensors.pop(name, None)
        if tensor is not None:
            self.tensors[name] = tensor
        self.save()

    def tell(self, name: str = "config.json", **changes: Any) -> None:
        """Change a JSON file."""
        file = self.folder / name
        told = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(told | changes))

    def index(self, **places: str) -> None:
        """Write an index: all tensors in the one file, but for those named."""
        weights = dict.fromkeys(self.tensors, WEIGHTS)
        weights |= {name.replace("__", "."): place for name, place in places.items()}
        (self.folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def open_model(folder: Path, **settings: Any) -> LLM:
    """Open a model with few pages on the CPU."""
    return LLM(folder, device="cpu", dtype="float32", num_pages=20, max_num_seqs=2, **settings)


def check_refused(folder: Path, error: type[EngineError], match: str, **settings: Any) -> None:
    """Check that the model of a folder is refused with these words."""
    with pytest.raises(error, match=match):
        open_model(folder, **settings)
