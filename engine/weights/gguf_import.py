"""GGUF import: a file of the Llama family as safetensors, config and tokenizer, dequantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from tokenbus.engine.errors import ModelBroken

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import Tensor

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# GGUF's token types (llama.cpp, enum llama_token_type).
_CONTROL, _USER_DEFINED = 3, 4
# Digits stand alone in the SmolLM family, which GPT-2's rule does not do.
_DIGIT_PRE_TOKENIZERS = {"smollm"}
_GPT2_PRE_TOKENIZERS = {"gpt-2", "default"}
# transformers' name of a special token -> GGUF's.
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def convert_gguf(source: Path, target: Path, progress: Callable[[float], None]) -> None:
    """Write bfloat16 safetensors, config, generation config and tokenizer into `target`.

    Raises: ModelBroken if the file is truncated or no Llama with a byte-level BPE tokenizer.
    """
    try:
        reader = gguf.GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields)
        tensors = {}
        for idx, tensor in enumerate(reader.tensors):
            name = _name(tensor.name)
            if name is not None:
                tensors[name] = _weight(tensor, name, config)
            progress(idx / len(reader.tensors))
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ModelBroken(f"{source.name} is no GGUF file that can be read: {error}") from error
    config.tie_word_embeddings = "lm_head.weight" not in tensors
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    GenerationConfig.from_model_config(config).save_pretrained(target)
    _tokenizer(fields).save_pretrained(target)
    progress(1.0)


def _config(fields: dict[str, Any]) -> LlamaConfig:
    if fields.get("general.architecture") != "llama":
        raise ModelBroken(f"GGUF of {fields.get('general.architecture')}, only llama is converted")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        # GGUF keeps it in float32; the shortest decimal is what was meant (1e-5).
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=fields.get("tokenizer.ggml.padding_token_id"),
        dtype=torch.bfloat16,
    )


def _name(name: str) -> str | None:
    """Return the tensor's name in a Llama checkpoint, None for tables that are computed."""
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    parts = name.split(".")
    if parts[0] != "blk" or parts[2] not in _PER_LAYER:
        return None
    return f"model.layers.{parts[1]}.{_PER_LAYER[parts[2]]}.{parts[3]}"


def _weight(tensor: gguf.ReaderTensor, name: str, config: LlamaConfig) -> Tensor:
    values: np.ndarray[Any, Any] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = torch.from_numpy(values.copy())
    if name.endswith("q_proj.weight"):
        weight = _halves(weight, config.num_attention_heads)
    elif name.endswith("k_proj.weight"):
        weight = _halves(weight, config.num_key_value_heads or config.num_attention_heads)
    return weight.to(torch.bfloat16).contiguous()


def _halves(weight: Tensor, num_heads: int) -> Tensor:
    """Turn rows from GGUF's rotary pairs (2i, 2i + 1) to transformers' (i, i + D / 2)."""
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> Any:
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelBroken("the GGUF's tokenizer is no byte-level BPE, the only kind converted")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: idx for idx, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    kind = fields.get("tokenizer.ggml.pre", "default")
    if kind in _DIGIT_PRE_TOKENIZERS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif kind in _GPT2_PRE_TOKENIZERS:
        tokenizer.pre_tokenizer = byte_level
    else:
        raise ModelBroken(f"the GGUF's pre-tokenizer {kind} is not known")
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    plain = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    named = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in _ROLES.items()
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(
        tokenizer_object=tokenizer,
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields.get("tokenizer.chat_template"),
        **named,
    )
