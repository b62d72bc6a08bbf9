"""The tokenizer in a model's folder, opened without code of the model and without questions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.model_folder import broken_if, is_plain_name, refuse_outside

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = "tokenizer_config.json"
_PART = "the tokenizer"


def open_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a folder.

    Raises: ModelBroken if its files cannot be used or lead out of the folder, ModelUnsupported if
        it needs code that the model brings along.
    """
    # It takes seconds that can pass beside the engine's start.
    from transformers import AutoTokenizer

    refuse_outside(folder)
    with broken_if(folder, _PART):
        _refuse_paths(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _refuse_paths(folder: Path) -> None:
    """Refuse a list of tokenizer files, one per version of transformers, that names a path."""
    file = folder / _CONFIG
    if not file.is_file():
        return
    config = json.loads(file.read_text())
    if not isinstance(config, dict):
        raise ModelBroken(f"{_CONFIG} of {folder} is no JSON object")
    for name in config.get("fast_tokenizer_files") or ():
        if not isinstance(name, str) or not is_plain_name(name):
            raise ModelBroken(f"{_CONFIG} of {folder} names {name!r}, which is no file name")
