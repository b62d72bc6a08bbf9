"""The place of a model: a folder or a GGUF file here, the model store, or the hub.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from tokenbus.engine.weights.model_store import Progress

# What the hub takes for an id: a name, or an owner and a name.
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt"]


def locate(model: str | Path) -> Path | None:
    """Return the folder or GGUF file of a model that lies on this machine; fetch nothing.

    Returns: None for an alias that was not pulled yet, and for a hub id.
    Raises: ModelNotFound for what is neither on this machine nor can be fetched, with what to do.
    """
    name = str(model)
    place = Path(model).expanduser()
    if (place / "config.json").is_file() or (place.suffix == ".gguf" and place.is_file()):
        return place
    if place.is_dir():
        raise ModelNotFound(f"{name} is a folder without config.json")
    if place.exists():
        raise ModelNotFound(f"{name} is neither a model's folder nor a GGUF file")
    if name in model_store.ALIASES:
        return model_store.find(name) if model_store.holds(name) else None
    looks_local = isinstance(model, Path) or name.startswith((".", "/", "~")) or "\0" in name
    if looks_local or name.endswith(".gguf"):
        raise ModelNotFound(f"there is no folder or file {name}")
    if _HUB_ID.fullmatch(name) is None:
        raise ModelNotFound(
            f"{name!r} is no local folder, no alias ({_aliases()}) and no id of a hub (owner/name)"
        )
    return None


def find_folder(
    model: str | Path, *, with_weights: bool = True, progress: Progress | None = None
) -> Path:
    """Return the local folder of a model: a hub id is fetched, a GGUF file converted.

    An alias is looked up, not fetched.
    Raises: ModelNotFound with what was tried and what to do; ModelBroken or ModelUnsupported for
        a file that holds no model that can be read.
    """
    place = locate(model)
    if place is not None:
        return (
            model_store.converted(place) if place.suffix == ".gguf" and place.is_file() else place
        )
    name = str(model)
    if name in model_store.ALIASES:
        return model_store.find(name)
    return _from_hub(name, with_weights=with_weights, progress=progress)


def _from_hub(name: str, *, with_weights: bool, progress: Progress | None) -> Path:
    """Return the folder of a hub id, fetched unless it is in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    if progress is not None:
        progress(f"asking the hub for {name}", 0.0)
    patterns = _HUB_PATTERNS if with_weights else _HUB_PATTERNS[1:]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"{name} is no local folder, no alias ({_aliases()}), and the hub answered: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _aliases() -> str:
    return ", ".join(sorted(model_store.ALIASES))
