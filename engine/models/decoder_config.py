"""Configuration of a decoder: what tells one from another, without the names of families."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Activation(StrEnum):
    """The gate's function in a gated MLP."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    GELU = "gelu"


class QKNorm(StrEnum):
    """Where queries and keys are normalised: per head, or over all heads of a token."""

    NONE = "none"
    PER_HEAD = "per_head"
    FULL_WIDTH = "full_width"


@dataclass(frozen=True, slots=True)
class NormNames:
    """Names of a layer's norms in the checkpoint, None where the layer has none.

    Each branch is x += post(branch(pre(x))).
    """

    pre_attention: str | None = "input_layernorm"
    post_attention: str | None = None
    pre_mlp: str | None = "post_attention_layernorm"
    post_mlp: str | None = None


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What may differ from layer to layer.

    `rope` names one of the model's rotary tables (None: no rotation). `sliding_window` counts the
    keys that a query sees, itself included (None: all).
    """

    rope: str | None
    sliding_window: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only transformer with gated MLPs, RMS norms and rotary positions.

    Attributes:
        attention_scale: factor on q·k; attention_softcap, final_softcap: bounds by tanh, or None.
        norm_offset: added to every norm weight (1.0 where checkpoints store weight - 1).
        embed_scale: factor on embeddings, rounded to the model's dtype if `embed_scale_rounded`.
        residual_scale: factor on each branch; logits_divisor: divides the logits.
        fused_checkpoint: the checkpoint stores qkv_proj and gate_up_proj already fused.
        rope_layer_types: table name -> layer type in the transformers config (None: the only one).
        partial_rotary: of each head a share is rotated, where the config has one.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    rope_layer_types: dict[str, str | None]
    attention_scale: float
    norm_eps: float
    activation: Activation
    tie_embeddings: bool
    norm_names: NormNames = NormNames()
    norm_offset: float = 0.0
    qk_norm: QKNorm = QKNorm.NONE
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    embed_scale_rounded: bool = False
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    fused_checkpoint: bool = False
    partial_rotary: bool = False
    initializer_range: float = 0.02

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
