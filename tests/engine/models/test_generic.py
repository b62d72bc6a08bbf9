"""Any other causal LM of transformers runs on pages, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    JambaConfig,
    Llama4TextConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2MoeConfig,
    Qwen3NextConfig,
    Starcoder2Config,
    T5Config,
)

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.loader import build_model
from tokenbus.engine.models.hf_generic import GenericModel

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
_MOE = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}

_RUNS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "gpt_neox": (GPTNeoXConfig, {}),
    "starcoder2-window": (Starcoder2Config, {"sliding_window": 20}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "gpt2": (GPT2Config, _GPT2),
    "deepseek_v3-mla": (DeepseekV3Config, _MLA),
    "opt": (OPTConfig, _OPT),
    "phi": (PhiConfig, {}),
}
_REFUSED: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    "mamba": (MambaConfig, {}, "linear_attention"),
    "jamba": (JambaConfig, {"num_experts": 2}, "mamba"),
    "qwen3_next": (Qwen3NextConfig, _MOE | {"head_dim": 16}, "linear_attention"),
    "llama4": (Llama4TextConfig, {"head_dim": 16, "num_local_experts": 2}, "chunked_attention"),
    "t5": (T5Config, {}, "encoder-decoder"),
    "bloom": (BloomConfig, {}, "ALiBi"),
    "gpt_oss": (GptOssConfig, {"head_dim": 16, "num_local_experts": 4}, "sinks"),
    "bert": (BertConfig, {}, "both directions"),
    "falcon": (FalconConfig, {}, "attention through transformers"),
}


def _build(config: Any, weights: Any) -> Any:
    return build_model(
        config, weights, dtype=torch.float32, device=torch.device("cpu"), max_model_len=1024
    )


@pytest.mark.parametrize("name", _RUNS)
def test_greedy_tokens_equal_transformers(
    name: str, sizes: Any, draw_model: Any, prompts: Any, driver: Any, reference: Any
) -> None:
    """Batched with strangers, chunked and paged, each prompt yields transformers' own tokens."""
    config_class, changes = _RUNS[name]
    config = config_class(**sizes(**changes))
    theirs = draw_model(config)
    ours = _build(config, theirs.state_dict())
    assert isinstance(ours, GenericModel)
    texts = prompts(199, [1, 15, 17, 130, 600])
    expected = reference(theirs).generate(texts, 48)
    assert max(len(set(answer)) for answer in expected) >= 10, "the reference itself is too dull"
    assert driver(ours, page_size=16, chunk=7, seed=1).generate(texts[:4], 48) == expected[:4]
    assert driver(ours, page_size=64, chunk=64, seed=2).generate(texts, 48) == expected


@pytest.mark.parametrize("name", _REFUSED)
def test_model_that_cannot_work_is_refused_with_the_reason(name: str, sizes: Any) -> None:
    """What keeps state outside of pages or biases attention is refused at load."""
    config_class, changes, reason = _REFUSED[name]
    with pytest.raises(ModelUnsupported, match=reason):
        _build(config_class(**sizes(**changes)), None)


def test_config_of_the_caller_is_left_alone(sizes: Any, draw_model: Any) -> None:
    """Building on a config does not redirect the attention of other models that share it."""
    config = PhiConfig(**sizes())
    theirs = draw_model(config)
    _build(config, theirs.state_dict())
    assert theirs(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_leaking_model_is_refused(sizes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that mixes neighbouring tokens outside of attention does not pass the probe."""
    from transformers.models.qwen2_moe import modeling_qwen2_moe as code

    plain = code.Qwen2MoeSparseMoeBlock.forward

    def leaky(self: Any, hidden: torch.Tensor) -> Any:
        return plain(self, hidden + torch.roll(hidden, 1, dims=-2))

    monkeypatch.setattr(code.Qwen2MoeSparseMoeBlock, "forward", leaky)
    with pytest.raises(ModelUnsupported, match="mixes tokens"):
        _build(Qwen2MoeConfig(**sizes(**_MOE)), None)
