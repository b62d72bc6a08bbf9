"""GGUF files of tiny models, blocks of random bytes and what these stand for: a second account.

The blocks are taken apart by the descriptions of their types, with no code of the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _half(block: Bytes, at: int) -> np.float32:
    return np.float32(block[at : at + 2].view(np.float16)[0])


def _q4_0(block: Bytes) -> Floats:
    steps = np.concatenate((block[2:] & 15, block[2:] >> 4)).astype(np.float32)
    return (steps - 8) * _half(block, 0)


def _q4_1(block: Bytes) -> Floats:
    steps = np.concatenate((block[4:] & 15, block[4:] >> 4)).astype(np.float32)
    return steps * _half(block, 0) + _half(block, 2)


def _q8_0(block: Bytes) -> Floats:
    return block[2:].view(np.int8).astype(np.float32) * _half(block, 0)


def _scale_and_low(packed: Bytes, part: int) -> tuple[int, int]:
    """Return the scale and the low of one of eight parts, of 6 bits each in 12 bytes."""
    if part < 4:
        return int(packed[part]) & 63, int(packed[part + 4]) & 63
    scale = (int(packed[part + 4]) & 15) | (int(packed[part - 4]) >> 6) << 4
    low = (int(packed[part + 4]) >> 4) | (int(packed[part]) >> 6) << 4
    return scale, low


def _q4_k(block: Bytes, *, high: Bytes | None = None, steps_at: int = 16) -> Floats:
    out = np.empty(256, dtype=np.float32)
    for part in range(8):
        packed = block[steps_at + part // 2 * 32 :][:32]
        steps = packed >> 4 if part % 2 else packed & 15
        if high is not None:
            steps = steps | ((high >> part) & 1) << 4
        scale, low = _scale_and_low(block[4:16], part)
        scaled = (_half(block, 0) * np.float32(scale)) * steps.astype(np.float32)
        out[part * 32 :][:32] = scaled - _half(block, 2) * np.float32(low)
    return out


def _q5_k(block: Bytes) -> Floats:
    return _q4_k(block, high=block[16:48], steps_at=48)


def _q6_k(block: Bytes) -> Floats:
    low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
    out = np.empty(256, dtype=np.float32)
    for i in range(256):
        half, quarter, place = i // 128, i % 128 // 32, i % 32
        byte = int(low[half * 64 + quarter % 2 * 32 + place])
        bits = byte >> 4 if quarter > 1 else byte & 15
        bits |= (int(high[half * 32 + place]) >> 2 * quarter & 3) << 4
        scale = _half(block, 208) * np.float32(scales[half * 8 + quarter * 2 + place // 16])
        out[i] = scale * np.float32(bits - 32)
    return out


# Of each type: bytes of a block, numbers in it, where its float16 are with their sizes, and a rule.
_TYPES: Mapping[str, tuple[int, int, dict[int, float], Callable[[Bytes], Floats]]] = {
    "Q4_0": (18, 32, {0: 0.06}, _q4_0),
    "Q4_1": (20, 32, {0: 0.06, 2: -0.5}, _q4_1),
    "Q8_0": (34, 32, {0: 0.004}, _q8_0),
    "Q4_K": (144, 256, {0: 0.002, 2: 0.015}, _q4_k),
    "Q5_K": (176, 256, {0: 0.001, 2: 0.015}, _q5_k),
    "Q6_K": (210, 256, {208: 0.0003}, _q6_k),
}


def blocks_of(kind: str, num_outputs: int, num_inputs: int) -> tuple[Bytes, torch.Tensor]:
    """Draw a matrix of a type: its bytes, and its numbers [out, in] float32."""
    size, count, halves, rule = _TYPES[kind]
    source = np.random.default_rng(num_outputs + size)
    blocks = source.integers(0, 256, (num_outputs, num_inputs // count, size), dtype=np.uint8)
    for at, scale in halves.items():
        blocks[..., at : at + 2] = np.full(1, scale, dtype=np.float16).view(np.uint8)
    numbers = [np.concatenate([rule(block) for block in row]) for row in blocks]
    return blocks.reshape(num_outputs, -1), torch.from_numpy(np.stack(numbers))


def write_gguf(
    model: Any,
    path: Path,
    *,
    types: Mapping[str, str] | None = None,
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
    rule: str = "smollm",
) -> dict[str, torch.Tensor]:
    """Write a model of transformers; return its tensors as the numbers that the file holds.

    types: by the end of a tensor's GGUF name, the type of block that it is drawn in anew. fields
    and extra: more fields of the architecture, and more tensors.
    """
    config, named = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, named)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    for name, value in (fields or {}).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        (writer.add_string if isinstance(value, str) else add)(f"{named}.{name}", value)
    _add_tokenizer(writer, config.vocab_size, rule)
    numbers = {}
    for name, value in model.state_dict().items():
        ours = _gguf_name(name)
        kind = next((k for end, k in (types or {}).items() if ours.endswith(f"{end}.weight")), "")
        if not kind:
            numbers[name] = value
            writer.add_tensor(ours, _turned(value, name, config).float().numpy())
            continue
        raw, drawn = blocks_of(kind, *value.shape)
        numbers[name] = _turned_back(drawn, name, config)
        writer.add_tensor(ours, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def _add_tokenizer(writer: Any, vocab_size: int, rule: str) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    tokens += [f"<|{idx}|>" for idx in range(len(tokens), vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(rule == "llama-bpe")
    writer.add_chat_template("{{ messages[0]['content'] }}")


def _gguf_name(name: str) -> str:
    linear, _, last = name.rpartition(".")
    top = {theirs: ours for ours, theirs in _TOP.items()}
    if linear in top:
        return f"{top[linear]}.{last}"
    _, _, layer, part = linear.split(".", 3)
    ours = {theirs: each for each, theirs in _NAMES.items()}[part]
    return f"blk.{layer}.{ours}.{last}"


def _heads(name: str, config: Any) -> int:
    """Return how many heads a tensor's rows are of, 0 if they are not turned in pairs."""
    if config.model_type != "llama":
        return 0
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((number for part, number in heads.items() if part in name), 0)


def _turned(value: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Lay rows out in GGUF's rotary pairs, as its writers do."""
    heads = _heads(name, config)
    if not heads:
        return value
    split = value.reshape(heads, 2, -1, value.shape[1]).transpose(1, 2)
    return split.reshape(value.shape).contiguous()


def _turned_back(value: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    heads = _heads(name, config)
    if not heads:
        return value
    split = value.reshape(heads, -1, 2, value.shape[1]).transpose(1, 2)
    return split.reshape(value.shape).contiguous()
