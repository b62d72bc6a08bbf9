"""GGUF import: a file as safetensors, config and tokenizer, its blocks as plain numbers.

A file says by its fields what model it holds. A field or a tensor that is not known here may change
what the numbers mean: it is refused by name.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig, Qwen2Config, Qwen3Config

from tokenbus.engine.errors import EngineError, ModelBroken, ModelUnsupported
from tokenbus.engine.model_folder import is_fault_of_file
from tokenbus.engine.weights.checkpoint import INDEX_NAME, SINGLE_NAME
from tokenbus.engine.weights.gguf_rope import rope_parameters
from tokenbus.engine.weights.gguf_tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

_ROPE_TABLE = "rope_freqs.weight"
_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_QKV_BIASES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
_QK_NORMS = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}
# Fields of an architecture that are read here, or say what others say too.
_FIELDS = {
    "vocab_size", "embedding_length", "feed_forward_length", "block_count", "context_length",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.finetuned", "expert_count", "expert_used_count",
}  # fmt: skip
_MAX_REASON_CHARACTERS = 1000
# A file of weights in memory at a time.
_MAX_FILE_BYTES = 2 * 2**30


# Above all tokens, merges and kinds of the largest vocabularies together.
_MAX_ITEMS = 2**21
# Of an array's items, before their number.
_KIND_BYTES = 4


class _BoundedGguf(gguf.GGUFReader):
    """Reads a file whose counts and lengths are anything at all.

    gguf's own reader takes what lies past a file's end for nothing.
    Raises: ValueError where it is not what it says, as gguf's own does.
    """

    _num_items = 0

    def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **named: Any) -> Any:
        found = super()._get(offset, dtype, count, *args, **named)
        if len(found) != int(count):
            raise ValueError("it ends within a field or a tensor")
        return found

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        # Each item of an array is an object of its own.
        self._num_items += 1
        if self._num_items > _MAX_ITEMS:
            raise ValueError(f"its fields have more than {_MAX_ITEMS} items")
        if raw_type == gguf.GGUFValueType.ARRAY:
            (length,) = self._get(orig_offs + _KIND_BYTES, np.uint64)
            if int(length) > len(self.data) - orig_offs:
                raise ValueError(f"it ends within an array of {length} items")
        return super()._get_field_parts(orig_offs, raw_type)


@dataclass(frozen=True, slots=True)
class _Architecture:
    """An architecture: its config in transformers, and what its files hold beside the usual.

    in_pairs: rotary dimensions are neighbours (2i, 2i + 1) and not (i, i + D / 2).
    """

    config: type[Any]
    class_name: str
    more: Mapping[str, str] = field(default_factory=dict)
    in_pairs: bool = False


_ARCHITECTURES = {
    "llama": _Architecture(LlamaConfig, "LlamaForCausalLM", in_pairs=True),
    "qwen2": _Architecture(Qwen2Config, "Qwen2ForCausalLM", _QKV_BIASES),
    "qwen3": _Architecture(Qwen3Config, "Qwen3ForCausalLM", _QK_NORMS),
}


def convert_gguf(source: Path, target: Path, progress: Callable[[float], None]) -> None:
    """Write safetensors, config, generation config and tokenizer into `target`.

    Blocks of few bits become bfloat16; files of float16 or float32 alone keep their dtype.
    Raises: ModelBroken if the file is truncated; ModelUnsupported for an architecture, a tokenizer,
        a field, a tensor or a type of blocks that is not known.
    """
    try:
        reader = _BoundedGguf(source)
        fields = {name: item.contents() for name, item in reader.fields.items()}
        named = str(fields.get("general.architecture"))
        tables = [item for item in reader.tensors if item.name == _ROPE_TABLE]
        config = _config(fields, named, tables)
        writer = _Files(target)
        for idx, tensor in enumerate(reader.tensors):
            name = _name(tensor.name, _ARCHITECTURES[named])
            if name is not None:
                writer.add(name, _weight(tensor, name, config, in_pairs=named == "llama"))
            progress(idx / len(reader.tensors))
        tokenizer = gguf_tokenizer(fields, config.max_position_embeddings)
    except BaseException as error:
        if isinstance(error, EngineError) or not (
            is_fault_of_file(error) or isinstance(error, struct.error)
        ):
            raise
        told = " ".join(str(error).split())[:_MAX_REASON_CHARACTERS]
        raise ModelBroken(f"{source.name} is no GGUF file that can be read: {told}") from error
    config.tie_word_embeddings = "lm_head.weight" not in writer.places
    config.dtype = _stored_dtype(reader)
    writer.close()
    config.save_pretrained(target)
    GenerationConfig.from_model_config(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    progress(1.0)


class _Files:
    """Safetensors files that are written as they fill up, with an index if there are several."""

    def __init__(self, target: Path) -> None:
        self.places: dict[str, str] = {}
        self._target = target
        self._open: dict[str, Tensor] = {}
        self._files: list[str] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor."""
        size = sum(item.nbytes for item in self._open.values())
        if self._open and size + tensor.nbytes > _MAX_FILE_BYTES:
            self._write(f"model-{len(self._files) + 1:05}.safetensors")
        self._open[name] = tensor
        self.places[name] = ""

    def close(self) -> None:
        """Write what is left, and the index."""
        if not self._files:
            self._write(SINGLE_NAME)
            return
        self._write(f"model-{len(self._files) + 1:05}.safetensors")
        index = {"metadata": {}, "weight_map": self.places}
        (self._target / INDEX_NAME).write_text(json.dumps(index))

    def _write(self, name: str) -> None:
        save_file(self._open, self._target / name, metadata={"format": "pt"})
        self.places |= dict.fromkeys(self._open, name)
        self._files.append(name)
        self._open = {}


def _config(fields: Mapping[str, Any], named: str, tables: list[gguf.ReaderTensor]) -> Any:
    architecture = _ARCHITECTURES.get(named)
    if architecture is None:
        known = ", ".join(_ARCHITECTURES)
        raise ModelUnsupported(f"a GGUF file of {named} cannot be read; of {known} it can")
    told = {
        name.removeprefix(f"{named}."): value
        for name, value in fields.items()
        if name.startswith(f"{named}.")
    }
    unknown = sorted(told.keys() - _FIELDS)
    if unknown:
        raise ModelUnsupported(f"the GGUF file has {named}.{unknown[0]}, which is not known here")
    if told.get("expert_count"):
        raise ModelUnsupported("a GGUF file with experts cannot be read")
    heads, hidden = told["attention.head_count"], told["embedding_length"]
    dim = told.get("attention.key_length") or hidden // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        if told.get(name, dim) != dim:
            raise ModelUnsupported(f"{named}.{name} is {told[name]}, heads have {dim}")
    return architecture.config(
        architectures=[architecture.class_name],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=hidden,
        intermediate_size=told["feed_forward_length"],
        num_hidden_layers=told["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=told.get("attention.head_count_kv", heads),
        head_dim=dim,
        max_position_embeddings=told["context_length"],
        # GGUF keeps it in float32; the shortest decimal is what was meant (1e-5).
        rms_norm_eps=float(f"{told['attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters=rope_parameters(told, dim, [_numbers(table) for table in tables]),
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
    )


def _name(name: str, architecture: _Architecture) -> str | None:
    """Return the tensor's name in a checkpoint of transformers, None for the rotary table."""
    if name == _ROPE_TABLE:
        return None
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    block, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    found = (_PER_LAYER | dict(architecture.more)).get(part)
    if block != "blk" or found is None:
        raise ModelUnsupported(f"the GGUF file has a tensor {name}, which is not known here")
    return f"model.layers.{layer}.{found}"


def _weight(tensor: gguf.ReaderTensor, name: str, config: Any, *, in_pairs: bool) -> Tensor:
    weight = _numbers(tensor)
    if in_pairs and name.endswith("q_proj.weight"):
        weight = _halves(weight, config.num_attention_heads)
    elif in_pairs and name.endswith("k_proj.weight"):
        weight = _halves(weight, config.num_key_value_heads or config.num_attention_heads)
    return weight.to(_DTYPES.get(tensor.tensor_type, torch.bfloat16)).contiguous()


# Types of plain numbers; norms are always of float32.
_DTYPES = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
}


def _numbers(tensor: gguf.ReaderTensor) -> Tensor:
    """Return the numbers that a tensor stands for, float32."""
    try:
        values: np.ndarray[Any, Any] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelUnsupported(
            f"{tensor.name} is stored as {tensor.tensor_type.name}, which cannot be read here"
        ) from error
    return torch.from_numpy(values.astype("float32"))


def _stored_dtype(reader: gguf.GGUFReader) -> torch.dtype:
    """Return the dtype of the matrices, if all have one of plain numbers; else bfloat16."""
    kinds = {item.tensor_type for item in reader.tensors if len(item.shape) > 1}
    return _DTYPES.get(kinds.pop(), torch.bfloat16) if len(kinds) == 1 else torch.bfloat16


def _halves(weight: Tensor, num_heads: int) -> Tensor:
    """Turn rows from GGUF's rotary pairs (2i, 2i + 1) to transformers' (i, i + D / 2)."""
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
