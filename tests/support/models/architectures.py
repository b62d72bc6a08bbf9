"""Every architecture that the tests run, as configurations of a few thousand weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
_GEMMA = {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 24}

_GPT2 = {"n_positions": 1024, "n_embd": 64, "n_layer": 3, "n_head": 4}
_OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.35, "num_attention_heads": 4}
_MLA = {
    "num_key_value_heads": 8,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_shared_experts": 1,
}
MOE = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}

# Mixtures of experts that the decoder covers: some layers without, one expert of all, shared
# experts with and without a gate, weights that are divided by their sum and such as are not.
MIXTURES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "qwen3_moe": (
        Qwen3MoeConfig,
        MOE
        | {
            "head_dim": 16,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen2_moe": (
        Qwen2MoeConfig,
        MOE | {"num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 2},
    ),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "sliding_window": 20}),
    "olmoe": (OlmoeConfig, {"num_experts": 7, "num_experts_per_tok": 4}),
    "granitemoe": (
        GraniteMoeConfig,
        {
            "num_local_experts": 5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
    ),
    "granitemoeshared": (
        GraniteMoeSharedConfig,
        {"num_local_experts": 5, "shared_intermediate_size": 48},
    ),
}


# Families that the decoder covers.
DECODER: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama-gqa": (LlamaConfig, {}),
    "llama-mha-bias-tied": (
        LlamaConfig,
        {
            "num_key_value_heads": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama-head-dim-llama3-rope": (LlamaConfig, {"head_dim": 16, "rope_parameters": _LLAMA3_ROPE}),
    "llama-yarn": (
        LlamaConfig,
        {"rope_parameters": _YARN | {"original_max_position_embeddings": 256}},
    ),
    "mistral-window": (MistralConfig, {"sliding_window": 20}),
    "qwen2-mixed-windows": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    ),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "smollm3-nope": (SmolLM3Config, {"no_rope_layer_interval": 2}),
    "gemma2": (
        Gemma2Config,
        _GEMMA | {"tie_word_embeddings": False, "attn_logit_softcapping": 8.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        _GEMMA
        | {
            "tie_word_embeddings": False,
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 20.0,
        },
    ),
    "phi3-partial-rotary": (
        Phi3Config,
        {"sliding_window": 30, "rope_parameters": _PARTIAL_ROPE},
    ),
    "phi3-longrope": (
        Phi3Config,
        {
            "rope_parameters": _LONGROPE,
            "original_max_position_embeddings": 700,
            "max_position_embeddings": 1400,
        },
    ),
    "granite": (
        GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
    ),
    "olmo2": (Olmo2Config, {}),
    **MIXTURES,
}

# Families that run through transformers' own code on our pages.
GENERIC: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "gpt_neox": (GPTNeoXConfig, {}),
    "starcoder2-window": (Starcoder2Config, {"sliding_window": 20}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
    "gpt2": (GPT2Config, _GPT2),
    "deepseek_v3-mla": (DeepseekV3Config, _MLA),
    "opt": (OPTConfig, _OPT),
    "phi": (PhiConfig, {}),
}


def tiny_sizes(**changes: Any) -> dict[str, Any]:
    """Return config fields of a model small enough for a test and lively enough to fail it."""
    sizes: dict[str, Any] = {
        "vocab_size": 199,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.35,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return sizes | changes


def draw_model(config: Any, seed: int = 0) -> Any:
    """Draw a model of transformers, norm weights and biases included, with eager attention.

    Mixtures of experts need a seed without a near tie between experts: where the last one chosen
    and the first one left out differ by less than 1e-6 in the router's logits, the order of a sum
    decides, in transformers itself too, and the tokens part.
    """
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config, attn_implementation="eager").eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            centre = 0.0 if name.endswith("bias") or "gemma" in config.model_type else 1.0
            torch.nn.init.normal_(weight, centre, 0.3)
    return model
