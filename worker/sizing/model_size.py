"""The size of a model, as its config.json tells it: no weights are read, and no torch is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenbus.engine.errors import ModelBroken, ModelNotFound, ModelUnsupported
from tokenbus.engine.models.families import is_covered

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_INSTEAD = "give --weights-gib, --layers, --kv-heads and --head-dim instead"


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What sizes are computed from.

    layer_parameters: numbers in the matrices of all layers; other_parameters: in the embedding and
    the head. Norms and biases, a thousandth of a model, are left out. weight_bytes: what weights
    take, where that was given and not counted. dtype: what the model was saved in.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    layer_parameters: int = 0
    other_parameters: int = 0
    weight_bytes: float | None = None
    max_model_len: int | None = None
    dtype: str = "bfloat16"


def read_model_size(model: str) -> ModelSize:
    """Return the size of a model: a folder with config.json, that file, or an alias or hub id here.

    Raises: ModelNotFound where it is not on this machine; ModelBroken where the file is no config
        of a language model; ModelUnsupported where its parameters cannot be counted.
    """
    path = _config_path(model)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        return _counted(config, path)
    except (ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise ModelBroken(f"{path} is no config of a model: {error}") from None
    except KeyError as error:
        raise ModelBroken(f"{path} lacks {error.args[0]}: {_INSTEAD}") from None


def _config_path(model: str) -> Path:
    place = Path(model).expanduser()
    if place.suffix == ".json" and place.is_file():
        return place
    if not (place / "config.json").is_file():
        # Imported on use: it needs what comes with the worker alone.
        from tokenbus.engine.weights.model_place import locate

        found = locate(model)
        if found is None or found.is_file():
            raise ModelNotFound(
                f"there is no config.json of {model} on this machine: fetch it, or {_INSTEAD}"
            )
        place = found
    return place / "config.json"


def _counted(config: dict[str, Any], path: Path) -> ModelSize:
    """Count the parameters of a decoder with gated MLPs, or with experts in their place."""
    kind, dtype = config["model_type"], config.get("dtype") or config.get("torch_dtype")
    if not is_covered(kind) or "quantization_config" in config:
        told = "quantised" if is_covered(kind) else f"of the type {kind}"
        raise ModelUnsupported(f"{path} is {told}, whose parameters are not counted: {_INSTEAD}")
    if dtype not in (None, *DTYPE_BYTES):
        raise ModelUnsupported(f"{path} has the dtype {dtype!r}, which is not sized: {_INSTEAD}")
    hidden, num_layers = config["hidden_size"], config["num_hidden_layers"]
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or hidden // num_heads
    attention = hidden * head_dim * (2 * num_heads + 2 * num_kv_heads)
    num_matrices = 1 if config.get("tie_word_embeddings", True) else 2
    return ModelSize(
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layer_parameters=num_layers * attention + _mlp_parameters(config, hidden, num_layers),
        other_parameters=num_matrices * config["vocab_size"] * hidden,
        max_model_len=config.get("max_position_embeddings"),
        dtype=dtype or "bfloat16",
    )


def _mlp_parameters(config: dict[str, Any], hidden: int, num_layers: int) -> int:
    """Count gate, up and down of all layers; in a mixture, those of its experts and the router."""
    num_experts = config.get("num_experts") or config.get("num_local_experts") or 0
    inner = config["intermediate_size"]
    if not num_experts:
        return int(num_layers * 3 * hidden * inner)
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    num_mixtures = sum(idx not in dense and (idx + 1) % step == 0 for idx in range(num_layers))
    expert = config.get("moe_intermediate_size") or inner
    shared = config.get("shared_expert_intermediate_size")
    gate = 1 if shared else 0
    shared = shared or config.get("shared_intermediate_size") or 0
    mixture = hidden * (3 * (num_experts * expert + shared) + num_experts + gate)
    return int(num_mixtures * mixture + (num_layers - num_mixtures) * 3 * hidden * inner)
