"""Configuration of a decoder: what tells one from another, without the names of families."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from tokenbus.engine.errors import RequestRejected

_FIELD = "tensor_parallel"


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
class MixtureNames:
    """Names of a mixture's tensors in the checkpoint, below their layer.

    Expert 3 has the linears `{experts}.3.{gate}`, `{up}` and `{down}`. `shared` names the linears
    of the expert that every token goes to: gate and up, one linear or two, then down.
    """

    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: tuple[str, ...] = (
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert.down_proj",
    )
    shared_gate: str = "mlp.shared_expert_gate"


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """A mixture of experts in place of a layer's MLP.

    Each token goes to the `top_k` experts with the largest softmax of the router's logits, in
    float32, and their results are summed with these weights, divided by their sum if `renormalise`.
    by_logits: the largest logits choose, which differ where their softmax may be equal.
    intermediate_size is an expert's. shared_size: of the expert that every token goes to, 0 without
    one; has_shared_gate: its result is scaled by the sigmoid of one more logit.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    renormalise: bool = True
    by_logits: bool = False
    shared_size: int = 0
    has_shared_gate: bool = False
    names: MixtureNames = MixtureNames()

    @property
    def num_logits(self) -> int:
        """Logits of the router, with the one of the shared expert's gate."""
        return self.num_experts + self.has_shared_gate


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What may differ from layer to layer.

    `rope` names one of the model's rotary tables (None: no rotation). `sliding_window` counts the
    keys that a query sees, itself included (None: all). A layer has an MLP or the model's mixture.
    """

    rope: str | None
    sliding_window: int | None = None
    is_mixture: bool = False


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
        mixture: what layers have that are mixtures of experts.
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
    mixture: MixtureShape | None = None

    def of_rank(self, size: int) -> DecoderConfig:
        """Return what one of `size` ranks has of the model; each has as much.

        Heads of keys and values that there are too few of stand on several ranks.
        Raises: RequestRejected with what cannot be divided.
        """
        if size == 1:
            return self
        if size % self.num_kv_heads and self.num_kv_heads % size:
            raise RequestRejected(
                _FIELD,
                f"{size} ranks cannot share {self.num_kv_heads} heads of keys and values evenly",
            )
        mixture = self.mixture
        if mixture is not None:
            mixture = replace(
                mixture,
                intermediate_size=_share("features of an expert", mixture.intermediate_size, size),
                shared_size=_share("features of the shared expert", mixture.shared_size, size),
            )
        return replace(
            self,
            num_heads=_share("query heads", self.num_heads, size),
            num_kv_heads=max(1, self.num_kv_heads // size),
            intermediate_size=_share("features of an MLP", self.intermediate_size, size),
            mixture=mixture,
        )


def _share(what: str, count: int, size: int) -> int:
    """Return a rank's part of so many. Raises: RequestRejected if it is no whole number."""
    if count % size:
        raise RequestRejected(_FIELD, f"{size} ranks cannot share {count} {what} evenly")
    return count // size
