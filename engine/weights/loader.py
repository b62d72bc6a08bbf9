"""The model loader: from a folder, hub id or alias to a model in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from tokenbus.engine.errors import ModelBroken, ModelUnsupported, RequestRejected
from tokenbus.engine.model_folder import broken_if, refuse_outside
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.models.families import decoder_config
from tokenbus.engine.models.hf_generic import GenericModel
from tokenbus.engine.models.hf_probe import refuse_by_config
from tokenbus.engine.models.rope import rope_table
from tokenbus.engine.sampling.checkpoint_defaults import sampling_defaults
from tokenbus.engine.text.context_length import context_length
from tokenbus.engine.text.tokenizer_folder import holds_tokenizer, open_tokenizer
from tokenbus.engine.types import NO_DEFAULTS, SamplingDefaults
from tokenbus.engine.weights.checkpoint import (
    checkpoint_digest,
    read_tensors,
    tensor_dtypes,
    verify_checksums,
)
from tokenbus.engine.weights.config_check import (
    refuse_counts,
    refuse_parts,
    refuse_sizes,
    refuse_type,
)
from tokenbus.engine.weights.decoder_weights import DecoderWeights, text_prefixes
from tokenbus.engine.weights.formats.expert_tensors import expert_tensors
from tokenbus.engine.weights.formats.quantised_reader import QuantisedReader
from tokenbus.engine.weights.formats.schemes import quantization_config, scheme_of
from tokenbus.engine.weights.leftovers import refuse_stored
from tokenbus.engine.weights.load_check import LoadCheck
from tokenbus.engine.weights.model_place import find_folder
from tokenbus.engine.weights.readers import PlainReader
from tokenbus.engine.weights.special_tokens import check_others, eos_token_ids, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.layers import DecoderTensors
    from tokenbus.engine.weights.model_store import Progress
    from tokenbus.engine.weights.readers import WeightReader

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with what a caller needs to talk to it.

    config: the transformers config; tokenizer: a transformers tokenizer, None if the model has
    none; max_model_len: the longest text in tokens whose positions are sound; backend: what runs
    the model; sampling_defaults: what its generation config says of sampling; checkpoint: the
    digest of its weights, empty where they were drawn.
    """

    model: PagedModel
    config: Any
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    name: str
    dtype: torch.dtype
    backend: Backend
    sampling_defaults: SamplingDefaults = NO_DEFAULTS
    checkpoint: str = ""


def load_model(
    model: str | Path,
    backend: Backend,
    *,
    dtype: str = "auto",
    random_weights: bool = False,
    max_model_len: int | None = None,
    chat_template: str | None = None,
    reader: WeightReader | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model from a local folder or GGUF file, a hub id or an alias of the model store.

    Args:
        backend: what is to run the model, and nothing else.
        dtype: auto, float32, bfloat16 or float16; auto is what the backend finds best for the
            checkpoint's own.
        random_weights: read only the config and draw the weights on the device.
        max_model_len: tokens of the longest text; None is the model's own limit.
        chat_template: in place of the model's own; the end of its turns is one of texts.
        reader: what makes kinds of weight of the checkpoint; None is as its config says.
        progress: called with what is going on and the share of it that is done, 0 to 1.
    Raises: ModelNotFound, ModelBroken, ModelUnsupported; RequestRejected for a `max_model_len` that
        the model's positions cannot have.
    """
    folder = find_folder(model, with_weights=not random_weights)
    config = _config(folder)
    if _shape_of(config) is None:
        refuse_by_config(config)
    chosen = _dtype(dtype, config, backend)
    if not random_weights:
        _verify(folder, progress)
    with broken_if(folder, "config.json"):
        longest = context_length(config.get_text_config()).chosen(max_model_len)
        vocab_size = int(config.get_text_config().vocab_size)
    tokenizer = _tokenizer(folder, config, vocab_size)
    weights = None if random_weights else folder
    build = partial(build_model, config, weights, backend, reader=reader, progress=progress)
    return LoadedModel(
        model=build(dtype=chosen, max_model_len=longest),
        config=config,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(folder, config, tokenizer, vocab_size, chat_template),
        max_model_len=longest,
        name=str(model),
        dtype=chosen,
        backend=backend,
        sampling_defaults=sampling_defaults(read_json(folder, "generation_config.json")),
        checkpoint="" if random_weights else checkpoint_digest(folder),
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
    progress: Progress | None = None,
) -> PagedModel:
    """Build the model of a transformers config from a folder or tensors by name (None: random).

    Raises: ModelBroken if tensors are missing, ModelUnsupported if the architecture cannot run or
        its weights cannot be read or multiplied by.
    """
    device, text = backend.device, config.get_text_config()
    dtypes = _stored_dtypes(weights)
    told = quantization_config(config, weights if isinstance(weights, Path) else None)
    reader = reader or _reader_for(told, dtypes)
    reader.check(told)
    shape = _shape_of(config)
    if shape is None:
        refuse_by_config(config)
        refuse_stored(dtypes)
        if not reader.is_plain:
            name = getattr(config, "name_or_path", "") or config.model_type
            raise ModelUnsupported(f"{name} runs in transformers' code, which has no {reader.name}")
        if backend.group.collective.size > 1:
            raise RequestRejected(
                "tensor_parallel",
                f"{config.model_type} runs in transformers' code, of which ranks have no parts",
            )
        return GenericModel.build(config, weights, backend.attention, dtype=dtype, device=device)
    refuse_sizes(shape, max_model_len)
    decoder = _open_weights(shape, dtype, backend, reader, has_towers=text is not config)
    if weights is None:
        decoder.draw()
    else:
        named = read_tensors(weights) if isinstance(weights, Path) else iter(weights.items())
        if progress is not None:
            named = _counted(named, len(dtypes), progress)
        decoder.fill(expert_tensors(named, shape))
    ropes = {
        name: rope_table(text, layer_type, max_model_len, device, is_partial=shape.partial_rotary)
        for name, layer_type in shape.rope_layer_types.items()
    }
    return _checked(decoder.finish(ropes), dtype, backend)


def _checked(tensors: DecoderTensors, dtype: torch.dtype, backend: Backend) -> Decoder:
    """Make a model of its tensors, and compare a few of its products."""
    check = LoadCheck(tensors)
    model = Decoder(tensors, backend.ops(tensors.config, dtype), backend.group.collective)
    check.run()
    return model


def _open_weights(
    shape: DecoderConfig,
    dtype: torch.dtype,
    backend: Backend,
    reader: WeightReader,
    *,
    has_towers: bool,
) -> DecoderWeights:
    """Open the weights of a model, or of the part of it that is this rank's."""
    ranks, cut = backend.group.collective, None
    if ranks.size > 1:
        whole = DecoderWeights(shape, dtype, torch.device("meta"), reader)
        cut = whole.cut_for(ranks.rank, ranks.size)
    own = shape.of_rank(ranks.size)
    return DecoderWeights(own, dtype, backend.device, reader, has_towers=has_towers, cut=cut)


def _shape_of(config: Any) -> DecoderConfig | None:
    """Return the decoder's form of a config, None for a family that it does not cover.

    Raises: ModelBroken if the config's numbers make none.
    """
    text = config.get_text_config()
    try:
        shape = decoder_config(text)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelBroken(
            f"config.json gives a {text.model_type} numbers that make no layers: {error}"
        ) from error
    if shape is not None and text is not config and getattr(config, "tie_word_embeddings", False):
        # A wrapper has the head, and says itself whether there is one beside the embedding.
        return replace(shape, tie_embeddings=True)
    return shape


def _counted(
    named: Iterable[tuple[str, Tensor]], num_tensors: int, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors on and say how many of them were read."""
    for number, item in enumerate(named):
        progress("reading weights", number / max(1, num_tensors))
        yield item
    progress("preparing weights", 0.0)


def _stored_dtypes(weights: Path | Mapping[str, Tensor] | None) -> Mapping[str, str]:
    """Return what each tensor of the weights is stored as, by name."""
    if weights is None:
        return {}
    if isinstance(weights, Path):
        return tensor_dtypes(weights)
    return {name: str(weights[name].dtype) for name in weights}


def _reader_for(told: Mapping[str, Any] | None, names: Iterable[str]) -> WeightReader:
    """Return the reader of a quantisation config; `names` are those of the tensors."""
    if told is None:
        return PlainReader()
    return QuantisedReader(scheme_of(told), text_prefixes(names))


def _verify(folder: Path, progress: Progress | None) -> None:
    """Compare the folder's files with its checksums, which takes seconds, and say so."""
    if progress is not None:
        progress("checking the files", 0.0)
    verify_checksums(folder)


def _config(folder: Path) -> Any:
    """Return the folder's transformers config; no code that it names is run."""
    refuse_outside(folder)
    with broken_if(folder, "config.json"):
        refuse_counts(folder)
        refuse_type(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    refuse_parts(config)
    return config


def _dtype(dtype: str, config: Any, backend: Backend) -> torch.dtype:
    if dtype != "auto":
        return _DTYPES[dtype]
    stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return backend.weights_dtype(stored if isinstance(stored, torch.dtype) else None)


def _tokenizer(folder: Path, config: Any, vocab_size: int) -> Any:
    """Return the folder's tokenizer, None if there is none; ids that are no tokens are told."""
    tokenizer = open_tokenizer(folder) if holds_tokenizer(folder) else None
    check_others(config, tokenizer, vocab_size)
    return tokenizer
