"""The families that the decoder covers: from a transformers config to a DecoderConfig.

It is one file because families are read side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.models.decoder_config import (
    Activation,
    DecoderConfig,
    LayerShape,
    MixtureNames,
    MixtureShape,
    NormNames,
    QKNorm,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu": Activation.GELU,
}
_SANDWICH = NormNames(
    pre_attention="input_layernorm",
    post_attention="post_attention_layernorm",
    pre_mlp="pre_feedforward_layernorm",
    post_mlp="post_feedforward_layernorm",
)
_POST_ONLY = NormNames(
    pre_attention=None,
    post_attention="post_attention_layernorm",
    pre_mlp=None,
    post_mlp="post_feedforward_layernorm",
)
_ROPE = "default"
_MIXTRAL = MixtureNames(
    router="block_sparse_moe.gate",
    experts="block_sparse_moe.experts",
    gate="w1",
    up="w3",
    down="w2",
)
_GRANITE = MixtureNames(
    router="block_sparse_moe.router.layer",
    experts="block_sparse_moe.experts",
    shared=("shared_mlp.input_linear", "shared_mlp.output_linear"),
)
# The gates of experts for which there are kernels.
_EXPERT_GATES = (Activation.SILU, Activation.GELU_TANH)


def decoder_config(config: Any) -> DecoderConfig | None:
    """Translate a transformers text config; None if the decoder does not cover the model."""
    family = _FAMILIES.get(config.model_type)
    if family is None or _activation_name(config) not in _ACTIVATIONS:
        return None
    if getattr(config, "use_bidirectional_attention", False):
        return None
    shape = family(config)
    if shape is not None and shape.mixture is not None and shape.activation not in _EXPERT_GATES:
        return None
    return shape


def is_covered(model_type: str) -> bool:
    """Tell whether the decoder has a function for a family, by its `model_type`."""
    return model_type in _FAMILIES


def _activation_name(config: Any) -> str:
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return str(name)


def _plain(config: Any, **changes: Any) -> DecoderConfig:
    """Return the Llama layout with the config's sizes and `changes` on top."""
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": head_dim,
        "layers": (LayerShape(_ROPE),) * config.num_hidden_layers,
        "rope_layer_types": {_ROPE: None},
        "attention_scale": head_dim**-0.5,
        "norm_eps": config.rms_norm_eps,
        "activation": _ACTIVATIONS[_activation_name(config)],
        "tie_embeddings": bool(config.tie_word_embeddings),
        "initializer_range": config.initializer_range,
    }
    return DecoderConfig(**(fields | changes))


def _windows(config: Any) -> tuple[int | None, ...]:
    """Return each layer's sliding window by the config's layer types."""
    return tuple(
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    )


def _llama(config: Any) -> DecoderConfig:
    bias = bool(getattr(config, "attention_bias", False))
    mlp_bias = bool(getattr(config, "mlp_bias", False))
    return _plain(config, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def _mistral(config: Any) -> DecoderConfig:
    window = LayerShape(_ROPE, config.sliding_window)
    return _plain(config, layers=(window,) * config.num_hidden_layers)


def _qwen2(config: Any) -> DecoderConfig:
    layers = tuple(LayerShape(_ROPE, window) for window in _windows(config))
    return _plain(config, layers=layers, qkv_bias=True)


def _qwen3(config: Any) -> DecoderConfig:
    layers = tuple(LayerShape(_ROPE, window) for window in _windows(config))
    bias = bool(config.attention_bias)
    return _plain(config, layers=layers, qkv_bias=bias, o_bias=bias, qk_norm=QKNorm.PER_HEAD)


def _smollm3(config: Any) -> DecoderConfig:
    rotated = [_ROPE if use else None for use in config.no_rope_layers]
    windows = _windows(config) if config.use_sliding_window else (None,) * len(rotated)
    layers = tuple(LayerShape(*shape) for shape in zip(rotated, windows, strict=False))
    bias = bool(config.attention_bias)
    return _plain(config, layers=layers, qkv_bias=bias, o_bias=bias, mlp_bias=config.mlp_bias)


def _gemma(config: Any, **changes: Any) -> DecoderConfig:
    bias = bool(config.attention_bias)
    return _plain(
        config,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        norm_names=_SANDWICH,
        norm_offset=1.0,
        qkv_bias=bias,
        o_bias=bias,
        final_softcap=config.final_logit_softcapping,
        embed_scale=config.hidden_size**0.5,
        embed_scale_rounded=True,
        **changes,
    )


def _gemma2(config: Any) -> DecoderConfig:
    layers = tuple(LayerShape(_ROPE, window) for window in _windows(config))
    return _gemma(config, layers=layers, attention_softcap=config.attn_logit_softcapping)


def _gemma3(config: Any) -> DecoderConfig:
    kinds = config.layer_types
    windows = _windows(config)
    return _gemma(
        config,
        layers=tuple(LayerShape(*shape) for shape in zip(kinds, windows, strict=True)),
        rope_layer_types={kind: kind for kind in dict.fromkeys(kinds)},
        qk_norm=QKNorm.PER_HEAD,
    )


def _phi3(config: Any) -> DecoderConfig:
    window = LayerShape(_ROPE, config.sliding_window)
    layers = (window,) * config.num_hidden_layers
    return _plain(config, layers=layers, fused_checkpoint=True, partial_rotary=True)


def _granite(config: Any) -> DecoderConfig:
    bias = bool(config.attention_bias)
    return _plain(
        config,
        attention_scale=config.attention_multiplier,
        embed_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        logits_divisor=config.logits_scaling,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.mlp_bias),
    )


def _olmo2(config: Any) -> DecoderConfig:
    bias = bool(config.attention_bias)
    return _plain(
        config, norm_names=_POST_ONLY, qk_norm=QKNorm.FULL_WIDTH, qkv_bias=bias, o_bias=bias
    )


def _mixture(num_experts: int, top_k: int, inner: int, **changes: Any) -> MixtureShape:
    """Return the shape of a mixture. Raises: ValueError for a choice of more than there are."""
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"each token goes to {top_k} of {num_experts} experts")
    return MixtureShape(num_experts, top_k, inner, **changes)


def _sparse_layers(config: Any, windows: tuple[int | None, ...]) -> tuple[LayerShape, ...]:
    """Return layers of which some are mixtures, by the config's step and list of others."""
    dense, step = config.mlp_only_layers or (), config.decoder_sparse_step
    return tuple(
        LayerShape(
            _ROPE, window, idx not in dense and config.num_experts > 0 and (idx + 1) % step == 0
        )
        for idx, window in enumerate(windows)
    )


def _qwen_mixture(config: Any, **changes: Any) -> MixtureShape | None:
    if not config.num_experts:
        return None
    return _mixture(
        config.num_experts,
        config.num_experts_per_tok,
        config.moe_intermediate_size,
        renormalise=bool(config.norm_topk_prob),
        **changes,
    )


def _qwen3_moe(config: Any) -> DecoderConfig:
    window = config.sliding_window if config.use_sliding_window else None
    bias = bool(config.attention_bias)
    return _plain(
        config,
        layers=_sparse_layers(config, (window,) * config.num_hidden_layers),
        mixture=_qwen_mixture(config),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=QKNorm.PER_HEAD,
    )


def _qwen2_moe(config: Any) -> DecoderConfig:
    shared = {"shared_size": config.shared_expert_intermediate_size, "has_shared_gate": True}
    return _plain(
        config,
        layers=_sparse_layers(config, _windows(config)),
        mixture=_qwen_mixture(config, **shared),
        qkv_bias=bool(getattr(config, "qkv_bias", True)),
    )


def _mixtral(config: Any) -> DecoderConfig:
    layer = LayerShape(_ROPE, config.sliding_window, is_mixture=True)
    experts = config.num_local_experts, config.num_experts_per_tok, config.intermediate_size
    return _plain(
        config,
        layers=(layer,) * config.num_hidden_layers,
        mixture=_mixture(*experts, names=_MIXTRAL),
    )


def _olmoe(config: Any) -> DecoderConfig | None:
    if config.clip_qkv is not None:
        return None
    experts = config.num_experts, config.num_experts_per_tok, config.intermediate_size
    bias = bool(config.attention_bias)
    return _plain(
        config,
        layers=(LayerShape(_ROPE, is_mixture=True),) * config.num_hidden_layers,
        mixture=_mixture(*experts, renormalise=bool(config.norm_topk_prob)),
        qk_norm=QKNorm.FULL_WIDTH,
        qkv_bias=bias,
        o_bias=bias,
    )


def _granite_moe(config: Any) -> DecoderConfig:
    bias = bool(config.attention_bias)
    experts = config.num_local_experts, config.num_experts_per_tok, config.intermediate_size
    shared_size = getattr(config, "shared_intermediate_size", 0)
    return _plain(
        config,
        layers=(LayerShape(_ROPE, is_mixture=True),) * config.num_hidden_layers,
        mixture=_mixture(*experts, by_logits=True, shared_size=shared_size, names=_GRANITE),
        attention_scale=config.attention_multiplier,
        embed_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        logits_divisor=config.logits_scaling,
        qkv_bias=bias,
        o_bias=bias,
    )


_FAMILIES: dict[str, Callable[[Any], DecoderConfig | None]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "granite": _granite,
    "olmo2": _olmo2,
    "qwen3_moe": _qwen3_moe,
    "qwen2_moe": _qwen2_moe,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "granitemoe": _granite_moe,
    "granitemoeshared": _granite_moe,
}
