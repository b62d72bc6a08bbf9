"""The model loader: from a folder, hub id or alias to a model in memory."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from transformers import AutoConfig, AutoTokenizer

from tokenbus.engine.errors import ModelBroken, ModelNotFound, ModelUnsupported
from tokenbus.engine.models.context_length import context_length
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.models.families import decoder_config
from tokenbus.engine.models.hf_generic import GenericModel
from tokenbus.engine.models.rope import rope_table
from tokenbus.engine.weights import model_store
from tokenbus.engine.weights.checkpoint import read_tensors, verify_checksums
from tokenbus.engine.weights.decoder_weights import DecoderWeights
from tokenbus.engine.weights.readers import PlainReader
from tokenbus.engine.weights.special_tokens import check_others, eos_token_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.weights.readers import WeightReader

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with what a caller needs to talk to it.

    config: the transformers config; tokenizer: a transformers tokenizer, None if the model has
    none; max_model_len: the longest text in tokens whose positions are sound; backend: what runs
    the model.
    """

    model: PagedModel
    config: Any
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    name: str
    dtype: torch.dtype
    backend: Backend


def load_model(
    model: str | Path,
    backend: Backend,
    *,
    dtype: str = "auto",
    random_weights: bool = False,
    max_model_len: int | None = None,
    reader: WeightReader | None = None,
) -> LoadedModel:
    """Load a model from a local folder, a hub id or an alias of the model store.

    Args:
        backend: what is to run the model, and nothing else.
        dtype: auto, float32, bfloat16 or float16; auto is what the backend finds best for the
            checkpoint's own.
        random_weights: read only the config and draw the weights on the device.
        max_model_len: tokens of the longest text; None is the model's own limit.
        reader: what makes kinds of weight of the checkpoint; None reads plain checkpoints.
    Raises: ModelNotFound, ModelBroken, ModelUnsupported; RequestRejected for a `max_model_len` that
        the model's positions cannot have.
    """
    folder = find_folder(model, with_weights=not random_weights)
    with _broken_if(folder, "config.json"):
        config = AutoConfig.from_pretrained(folder)
    chosen = _dtype(dtype, config, backend)
    if not random_weights:
        verify_checksums(folder)
    longest = context_length(config.get_text_config()).chosen(max_model_len)
    tokenizer = _tokenizer(folder)
    vocab_size = int(config.get_text_config().vocab_size)
    check_others(config, tokenizer, vocab_size)
    paged = build_model(
        config,
        None if random_weights else folder,
        backend,
        dtype=chosen,
        max_model_len=longest,
        reader=reader,
    )
    return LoadedModel(
        model=paged,
        config=config,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(folder, config, tokenizer, vocab_size, _broken_if),
        max_model_len=longest,
        name=str(model),
        dtype=chosen,
        backend=backend,
    )


@torch.no_grad()
def build_model(
    config: Any,
    weights: Path | Mapping[str, Tensor] | None,
    backend: Backend,
    *,
    dtype: torch.dtype,
    max_model_len: int,
    reader: WeightReader | None = None,
) -> PagedModel:
    """Build the model of a transformers config from a folder or tensors by name (None: random).

    Raises: ModelBroken if tensors are missing, ModelUnsupported if the architecture cannot run or
        its weights cannot be read or multiplied by.
    """
    reader, device, text = reader or PlainReader(), backend.device, config.get_text_config()
    reader.check(config)
    shape = decoder_config(text)
    if shape is None:
        if not reader.is_plain:
            name = getattr(config, "name_or_path", "") or config.model_type
            raise ModelUnsupported(f"{name} runs in transformers' code, which has no {reader.name}")
        return GenericModel.build(config, weights, backend.attention, dtype=dtype, device=device)
    decoder = DecoderWeights(shape, dtype, device, reader)
    if weights is None:
        decoder.draw()
    else:
        decoder.fill(read_tensors(weights) if isinstance(weights, Path) else weights.items())
    ropes = {
        name: rope_table(text, layer_type, max_model_len, device)
        for name, layer_type in shape.rope_layer_types.items()
    }
    return Decoder(decoder.finish(ropes), backend.ops(shape, dtype))


def find_folder(model: str | Path, *, with_weights: bool = True) -> Path:
    """Return the local folder of a model, fetching a hub id if it is not cached.

    Raises: ModelNotFound with what was tried and what to do.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    name = str(model)
    if folder.is_dir():
        raise ModelNotFound(f"{name} is a folder without config.json")
    if name in model_store.ALIASES:
        return model_store.find(name)
    if isinstance(model, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelNotFound(f"there is no folder {name}")
    patterns = _HUB_PATTERNS if with_weights else _HUB_PATTERNS[1:]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        aliases = ", ".join(sorted(model_store.ALIASES))
        raise ModelNotFound(
            f"{name} is no local folder, no alias ({aliases}), and the hub answered: "
            f"{str(error).splitlines()[0]}"
        ) from error


@contextmanager
def _broken_if(folder: Path, part: str) -> Iterator[None]:
    """Turn any failure to parse the model's own files into ModelBroken."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        # Of a field of the wrong type the first line has the name and the second the value.
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        reason = " ".join(lines[: 2 if isinstance(error, StrictDataclassError) else 1])
        raise ModelBroken(f"{part} of {folder} cannot be used: {reason}") from error


def _dtype(dtype: str, config: Any, backend: Backend) -> torch.dtype:
    if dtype != "auto":
        return _DTYPES[dtype]
    stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return backend.weights_dtype(stored if isinstance(stored, torch.dtype) else None)


def _tokenizer(folder: Path) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    with _broken_if(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(folder)
