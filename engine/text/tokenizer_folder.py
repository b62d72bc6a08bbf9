"""The tokenizer in a model's folder, opened without code of the model and without questions."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.model_folder import broken_if, is_plain_name, refuse_outside

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = "tokenizer_config.json"
_PART = "the tokenizer"
_WHOLE = "tokenizer.json"
# Files that hold a vocabulary, by how they are named.
_VOCABULARIES = ("*.model", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt", "*.vocab")
# The template's place beside a processor's config, which tokenizers do not read.
_TEMPLATE = "chat_template.json"
# A line of a vocabulary in tiktoken's form: base64 and a rank.
_RANKED = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")


def holds_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer, whole or in part."""
    return any(any(folder.glob(name)) for name in (_WHOLE, _CONFIG, *_VOCABULARIES))


def open_tokenizer(folder: Path) -> Any:
    """Return the transformers tokenizer of a folder.

    Raises: ModelBroken if its files cannot be used or lead out of the folder, ModelUnsupported if
        it needs code that the model brings along, or a library that is not installed.
    """
    # It takes seconds that can pass beside the engine's start.
    from transformers import AutoTokenizer

    refuse_outside(folder)
    with broken_if(folder, _PART):
        _refuse_paths(folder)
        if not (folder / _WHOLE).is_file():
            _refuse_without_library(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
            raise ModelBroken(f"{folder} has a tokenizer without a vocabulary: put {_WHOLE} there")
        if tokenizer.chat_template is None and (folder / _TEMPLATE).is_file():
            tokenizer.chat_template = _template_of_processor(folder / _TEMPLATE)
    return tokenizer


def _refuse_without_library(folder: Path) -> None:
    """Refuse a vocabulary for which a library is missing: transformers names another one.

    Raises: ModelUnsupported.
    """
    for file in sorted((*folder.glob("*.model"), *folder.glob("*.tiktoken"))):
        with file.open("rb") as stream:
            is_ranked = _RANKED.match(stream.readline(1000)) is not None
        form, names = ("a tiktoken vocabulary", ["tiktoken"])
        if not is_ranked:
            form, names = ("a SentencePiece model", ["sentencepiece", "google.protobuf"])
        missing = [name.replace("google.", "") for name in names if not _is_installed(name)]
        if missing:
            raise ModelUnsupported(
                f"{file.name} of {folder} is {form}, for which {' and '.join(missing)} must be"
                f" installed; or put the tokenizer's {_WHOLE} beside it"
            )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _template_of_processor(file: Path) -> str | dict[str, str]:
    """Return the template in a processor's file, or several by name."""
    told = json.loads(file.read_bytes())
    template = told.get("chat_template") if isinstance(told, dict) else None
    if isinstance(template, list):
        return {str(item["name"]): str(item["template"]) for item in template}
    if not isinstance(template, str):
        raise ModelBroken(f"{file.name} of {file.parent} holds no template")
    return template


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
