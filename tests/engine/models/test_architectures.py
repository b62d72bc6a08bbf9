"""Every family that the decoder covers generates what transformers generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tokenbus.engine.loader import build_model
from tokenbus.engine.models.decoder import Decoder

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

_CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
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
}


@pytest.mark.parametrize("name", _CASES)
def test_greedy_tokens_equal_transformers(
    name: str, sizes: Any, draw_model: Any, prompts: Any, driver: Any, reference: Any
) -> None:
    """Batched with strangers, chunked and paged, each prompt yields transformers' own tokens."""
    config_class, changes = _CASES[name]
    config = config_class(**sizes(**changes))
    theirs = draw_model(config)
    ours = build_model(
        config,
        theirs.state_dict(),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_model_len=700,
    )
    assert isinstance(ours, Decoder)
    texts = prompts(199, [1, 15, 16, 17, 130, 600])
    expected = reference(theirs).generate(texts, 48)
    assert max(len(set(answer)) for answer in expected) >= 10, "the reference itself is too dull"
    assert driver(ours, page_size=16, chunk=7, seed=1).generate(texts[:5], 48) == expected[:5]
    assert driver(ours, page_size=64, chunk=64, seed=2).generate(texts, 48) == expected
    assert driver(ours, page_size=16, chunk=64).generate(texts[3:4], 48) == expected[3:4]
