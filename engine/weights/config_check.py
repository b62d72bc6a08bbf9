"""Sizes of a model, as its config gives them, before anything is made of them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import ModelBroken, ModelUnsupported

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.engine.models.decoder_config import DecoderConfig

# Far above every model's (1e-6 to 1e-5): with more, a norm is no norm.
_MAX_EPS = 0.1
# Above every size of every model; transformers makes a list of as many entries as there are layers.
_MAX_SIZE, _MAX_LAYERS = 2**24, 4096
# Classes of a classifier, which transformers names one by one for every model, and entries of any
# list: image models have 21,843.
_MAX_ENTRIES = 2**16
_QUANTISATIONS = ("quantization_config", "compression_config")


def refuse_counts(folder: Path) -> None:
    """Refuse numbers of layers or labels for which no memory would do, before all else reads them.

    Lists without bounds are refused too, on which transformers spends minutes,
    and a quantisation that is no object, on which it fails.

    Raises: ModelBroken with the field; ValueError or OSError if the file is no JSON.
    """
    parts: list[Any] = [json.loads((folder / "config.json").read_bytes())]
    while parts:
        part = parts.pop()
        if isinstance(part, (dict, list)) and len(part) > _MAX_ENTRIES:
            raise ModelBroken(f"config.json has a list of {len(part)} entries")
        if not isinstance(part, dict):
            continue
        parts += part.values()
        for name, count in part.items():
            most = _MAX_LAYERS if "layer" in name else _MAX_ENTRIES if "label" in name else None
            if most is not None and isinstance(count, int) and count > most:
                raise ModelBroken(f"config.json gives the model a {name} of {count}")
            if name in _QUANTISATIONS and count is not None and not isinstance(count, dict):
                raise ModelBroken(f"config.json gives a {name} that is no object: {count!r:.60}")


def refuse_type(folder: Path) -> None:
    """Refuse a model of a type that transformers does not know, unless it brings code along.

    Raises: ValueError with the type, or if there is none; TypeError if it is no text.
    """
    # It imports torch, which what else stands here does without.
    import transformers

    config = json.loads((folder / "config.json").read_bytes())
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ValueError("it names no model_type")
    model_type = config["model_type"]
    if not isinstance(model_type, str):
        raise TypeError(f"its model_type is {model_type!r:.60}")
    known = transformers.CONFIG_MAPPING
    if model_type not in known and "AutoConfig" not in (config.get("auto_map") or ()):
        raise ValueError(
            f"transformers {transformers.__version__} knows no model of the type {model_type!r}"
        )


def refuse_parts(config: Any) -> None:
    """Refuse a config whose text model is not to be found, or is of a form that nothing reads.

    config: that of transformers.
    Raises: ModelBroken with the part; ModelUnsupported if there are several text models.
    """
    try:
        text = config.get_text_config()
    except (ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelUnsupported(
            f"{config.model_type} has no one text model that could be served ({reason:.200})"
        ) from error
    if not hasattr(text, "model_type"):
        raise ModelBroken(f"config.json gives {config.model_type} a text model of {text!r:.60}")
    for name in ("layer_types", "layers_block_type"):
        kinds = getattr(text, name, None)
        if kinds is not None and not (
            isinstance(kinds, list | tuple) and all(isinstance(kind, str) for kind in kinds)
        ):
            raise ModelBroken(
                f"config.json gives {name} of {kinds!r:.60}, which is no list of texts"
            )


def refuse_sizes(config: DecoderConfig, max_model_len: int) -> None:
    """Refuse sizes that no model has.

    Raises: ModelBroken with the size.
    """
    sizes = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": max_model_len,
    }
    mixture = config.mixture
    if mixture is not None:
        sizes["num_experts"] = mixture.num_experts
        sizes["intermediate_size of an expert"] = mixture.intermediate_size
        if mixture.has_shared_gate:
            sizes["shared_expert_intermediate_size"] = mixture.shared_size
    windows = {layer.sliding_window for layer in config.layers} - {None}
    for name, size in (*sizes.items(), *(("sliding_window", one) for one in windows)):
        if not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
            raise ModelBroken(f"config.json gives the model a {name} of {size}")
    if config.num_heads % config.num_kv_heads:
        raise ModelBroken(
            f"config.json gives the model {config.num_heads} query heads on"
            f" {config.num_kv_heads} heads of keys and values"
        )
    scales = {
        "attention": config.attention_scale,
        "embeddings": config.embed_scale,
        "branches": config.residual_scale,
        "logits": config.logits_divisor,
        "capped attention": config.attention_softcap,
        "capped logits": config.final_softcap,
    }
    for name, scale in scales.items():
        if scale is not None and (not _is_number(scale) or not 0 < scale < math.inf):
            raise ModelBroken(f"config.json gives {name} a scale of {scale!r:.60}")
    if not _is_number(config.norm_eps) or not 0 < config.norm_eps <= _MAX_EPS:
        raise ModelBroken(f"config.json gives the norms an epsilon of {config.norm_eps}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
