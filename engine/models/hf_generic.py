"""The generic model: any causal LM of transformers over pages, slower than the decoder."""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from tokenbus.engine.errors import ModelBroken, ModelUnsupported
from tokenbus.engine.model_folder import CODE_FAULTS
from tokenbus.engine.models.hf_hook import (
    ATTENTION_NAME,
    MASKED_NAME,
    AttentionCall,
    handled_by,
    register,
)
from tokenbus.engine.models.hf_probe import (
    check_head,
    check_paged,
    find_windows,
    record_specs,
    run_eager,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext, PagedAttention
    from tokenbus.engine.kv_cache import AttentionSpec

# Of tensors that a model does not take: what belongs to a linear besides its weight.
_MATTERS = re.compile(r"(\.bias|scales?|scale_inv|zeros?|zero_point|qzeros|g_idx|qweight|_packed)$")


class GenericModel:
    """A transformers model whose tokens are flattened into one row (see PagedModel).

    Attention leaves the model through the hook; everything else is transformers' own code. The
    hidden states are those after the final norm, as transformers gives no others.
    """

    def __init__(
        self, model: Any, specs: dict[int, AttentionSpec], attention: PagedAttention
    ) -> None:
        self._model = model
        self._base = model.base_model
        self._head = _head_of(model)
        self._specs = specs
        self._attention = attention
        self._ctx: ForwardContext | None = None
        self.attention_specs = list(specs.values())
        self.vocab_size = int(model.config.get_text_config().vocab_size)

    @classmethod
    def build(
        cls,
        config: Any,
        weights: Path | Mapping[str, Tensor] | None,
        attention: PagedAttention,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> GenericModel:
        """Load through transformers, then prove on a few tokens that paging keeps the results.

        Raises: ModelUnsupported with the reason, ModelBroken if weights are missing.
        """
        # Choosing the attention writes into the config, which is the caller's.
        model = _load(copy.deepcopy(config), weights, dtype, device)
        register()
        with _unsupported_if(config, "transformers' own code fails on a few tokens"):
            expected, logits = run_eager(model)
        with _unsupported_if(config, "it does not run on pages"):
            model.set_attn_implementation(MASKED_NAME)
            windowed = find_windows(model)
            model.set_attn_implementation(ATTENTION_NAME)
            generic = cls(model, record_specs(model, windowed), attention)
            check_head(generic, expected, logits, dtype)
            check_paged(generic, expected, dtype, device)
        return generic

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """token_ids: [T] int64 -> hidden states [T, H] after the final norm."""
        self._ctx = ctx
        with handled_by(self):
            out = self._base(
                input_ids=token_ids[None], position_ids=ctx.positions[None], use_cache=False
            )
        self._ctx = None
        hidden: Tensor = out[0][0]
        return hidden

    def logits(self, hidden: Tensor, *, exact: bool = True) -> Tensor:  # noqa: ARG002
        """hidden: [M, H], chosen rows only -> [M, V] float32, by the model's own head."""
        logits: Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits.float()

    def attention(self, call: AttentionCall) -> Tensor:
        """Answer one attention call of the model from the pages of the current pass."""
        ctx = self._ctx
        assert ctx is not None
        spec = self._specs[id(call.module)]
        value_dim = call.v.shape[-1]
        values = call.v
        if value_dim < spec.head_dim:
            values = F.pad(values, (0, spec.head_dim - value_dim))
        # Rounded pages take what the model has, and round it themselves.
        dtype = call.q.dtype if ctx.kv.k_scales else ctx.kv.dtype
        q, k, v = (
            part[0].transpose(0, 1).to(dtype).contiguous() for part in (call.q, call.k, values)
        )
        out = self._attention.attend(q, k, v, spec, ctx)
        return out[..., :value_dim].to(call.q.dtype)[None]


class _HiddenStates:
    """The output of a base model that has nothing but hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, idx: int | slice) -> Any:
        return (self.last_hidden_state,)[idx]

    def __getattr__(self, name: str) -> None:
        return None


class _PassThrough(nn.Module):
    """Stands for the base model, or its decoder, where only the head shall run."""

    @property
    def decoder(self) -> _PassThrough:
        """Return itself: some heads call the base model's decoder."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _HiddenStates:
        return _HiddenStates(inputs_embeds)


def _head_of(model: Any) -> Any:
    """Return a view of the model that runs only what follows the base model.

    It shares all weights, and keeps each family's own scaling and capping of logits.
    """
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head._modules[model.base_model_prefix] = _PassThrough()
    return head


@contextmanager
def _unsupported_if(config: Any, what: str) -> Iterator[None]:
    """Turn whatever a family's own code raises into ModelUnsupported, which says `what`."""
    try:
        yield
    except (*CODE_FAULTS, AssertionError) as error:
        reason = " ".join(str(error).split())
        told = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise ModelUnsupported(f"{config.model_type}: {what} ({told:.300})") from error


def _load(
    config: Any,
    weights: Path | Mapping[str, Tensor] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    factory: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    try:
        if weights is None:
            with device:
                model = factory.from_config(config, trust_remote_code=False, **options)
        elif isinstance(weights, Path):
            options |= {"config": config, "output_loading_info": True}
            options |= {"trust_remote_code": False, "use_safetensors": True}
            model, report = factory.from_pretrained(weights, **options)
            _refuse_missing(report["missing_keys"])
            _refuse_unexpected(model, report["unexpected_keys"])
        else:
            model = factory.from_config(config, trust_remote_code=False, **options)
            report = model.load_state_dict(dict(weights), strict=False)
            _refuse_missing(report.missing_keys)
            _refuse_unexpected(model, report.unexpected_keys)
            model.tie_weights()
    except (*CODE_FAULTS, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"transformers cannot load {config.model_type}: {reason:.300}"
        if isinstance(error, ImportError):
            raise ModelUnsupported(message) from error
        raise ModelBroken(message) from error
    return model.to(device).eval().requires_grad_(False)


def _refuse_missing(names: Any) -> None:
    if names:
        raise ModelBroken(
            f"{len(names)} weights are missing from the checkpoint, first of them {min(names)}"
        )


def _refuse_unexpected(model: Any, names: Any) -> None:
    """Refuse tensors that would have changed the numbers of a linear that the model has."""
    linears = {name.removesuffix(".weight") for name, _ in model.named_parameters()}
    left = [name for name in names if _MATTERS.search(name) and name.rpartition(".")[0] in linears]
    if left:
        raise ModelUnsupported(f"{min(left)} is in the checkpoint, and the model takes none")
