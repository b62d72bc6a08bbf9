"""From a name to a model in memory: folder, hub id or alias; dtype and device chosen."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.errors import ModelBroken, ModelNotFound, ModelUnsupported
from tokenbus.engine.models.families import decoder_config
from tokenbus.engine.models.hf_generic import GenericModel
from tokenbus.engine.models.native_ops import NativeOps
from tokenbus.engine.models.ops import TorchOps
from tokenbus.engine.models.packed_ops import PackedOps
from tokenbus.engine.models.rope import natural_max_len, rope_table
from tokenbus.engine.models.weights import DecoderWeights
from tokenbus.engine.native_library import native_library
from tokenbus.engine.weights import model_store
from tokenbus.engine.weights.checkpoint import read_tensors, verify_checksums
from tokenbus.kernels.cpu.native import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from tokenbus.engine.interfaces import PagedAttention, PagedModel
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.ops import Ops

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with what a caller needs to talk to it.

    config: the transformers config; tokenizer: a transformers tokenizer, None if the model has
    none; max_model_len: the longest text in tokens whose positions are sound; attention: the
    backend that all layers attend through, None if whoever built the model keeps it to himself.
    """

    model: PagedModel
    config: Any
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    name: str
    dtype: torch.dtype
    device: torch.device
    attention: PagedAttention | None = None


def load_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    random_weights: bool = False,
    max_model_len: int | None = None,
    attention: PagedAttention | None = None,
    ops: Callable[[PagedAttention], Ops] | None = None,
) -> LoadedModel:
    """Load a model from a local folder, a hub id or an alias of the model store.

    Args:
        dtype: auto, float32, bfloat16 or float16; auto is the checkpoint's own, on a CPU bfloat16
            where it is native and float32 elsewhere.
        device: auto, cpu or cuda[:index]; auto is the GPU if there is one.
        random_weights: read only the config and draw the weights on the device.
        max_model_len: tokens the rotary tables reach; None is the model's own limit.
        attention, ops: backends; None chooses by device and dtype.
    Raises: ModelNotFound, ModelBroken, ModelUnsupported.
    """
    folder = find_folder(model, with_weights=not random_weights)
    with _broken_if(folder, "config.json"):
        config = AutoConfig.from_pretrained(folder)
    target = choose_device(device)
    chosen = _dtype(dtype, config, target)
    if not random_weights:
        verify_checksums(folder)
    attention = attention or _attention(chosen, target, ops)
    longest = max_model_len or natural_max_len(config.get_text_config())
    paged = build_model(
        config,
        None if random_weights else folder,
        dtype=chosen,
        device=target,
        max_model_len=longest,
        attention=attention,
        ops=ops,
    )
    return LoadedModel(
        model=paged,
        config=config,
        tokenizer=_tokenizer(folder),
        eos_token_ids=_eos_token_ids(folder, config),
        max_model_len=longest,
        name=str(model),
        dtype=chosen,
        device=target,
        attention=attention,
    )


@torch.no_grad()
def build_model(
    config: Any,
    weights: Path | Mapping[str, Tensor] | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    attention: PagedAttention | None = None,
    ops: Callable[[PagedAttention], Ops] | None = None,
) -> PagedModel:
    """Build the model of a transformers config from a folder or tensors by name (None: random).

    Raises: ModelBroken if tensors are missing, ModelUnsupported if the architecture cannot run.
    """
    attention = attention or _attention(dtype, device, ops)
    text = config.get_text_config()
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        raise ModelUnsupported("quantised checkpoints are not supported; use the plain weights")
    shape = decoder_config(text)
    if shape is None:
        return GenericModel.build(config, weights, attention, dtype=dtype, device=device)
    decoder = DecoderWeights(shape, dtype, device)
    if weights is None:
        decoder.draw()
    else:
        decoder.fill(read_tensors(weights) if isinstance(weights, Path) else weights.items())
    ropes = {
        name: rope_table(text, layer_type, max_model_len, device)
        for name, layer_type in shape.rope_layer_types.items()
    }
    if ops is None:
        ops = _ops(shape, attention, dtype, device)
    return decoder.build(ropes, ops(attention))


def _attention(
    dtype: torch.dtype, device: torch.device, ops: Callable[[PagedAttention], Ops] | None
) -> PagedAttention:
    """Return the fastest attention for a device, plain torch under steps that a caller chose."""
    if ops is None and device.type == "cpu" and dtype in DTYPES:
        library = native_library()
        if library is not None:
            return NativeAttention(library)
    return TorchAttention()


def _ops(
    shape: DecoderConfig, attention: PagedAttention, dtype: torch.dtype, device: torch.device
) -> Callable[[PagedAttention], Ops]:
    """Return the fastest steps for a device that no caller chose them for."""
    if isinstance(attention, NativeAttention) and NativeOps.supports(shape, dtype):
        return NativeOps
    return PackedOps if PackedOps.supports(dtype, device) else TorchOps


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelBroken(f"{part} of {folder} cannot be used: {reason}") from error


def choose_device(device: str) -> torch.device:
    """Return the device of a name; auto is the GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return _DTYPES[dtype]
    stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    if device.type == "cpu":
        narrow = stored in (torch.bfloat16, torch.float16)
        native = PackedOps.supports(torch.bfloat16, device)
        return torch.bfloat16 if narrow and native else torch.float32
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16


def _tokenizer(folder: Path) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    with _broken_if(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(folder)


def _eos_token_ids(folder: Path, config: Any) -> tuple[int, ...]:
    """Return the ids that end a text: those of the generation config, else of the config."""
    eos = None
    if (folder / "generation_config.json").is_file():
        with _broken_if(folder, "generation_config.json"):
            eos = GenerationConfig.from_pretrained(folder).eos_token_id
    if eos is None:
        eos = getattr(config.get_text_config(), "eos_token_id", None)
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
