"""Probes of a transformers model: what is found out before it may run on pages."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.models.hf_hook import AttentionCall, handled_by

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import PagedModel

# More tokens than a page holds, in the smallest page that every backend takes.
_PROBE_TOKENS = 20
_PAGE_SIZE = 16
# Mean over tokens of |difference| / |reference|; wrong attention or leaking tokens give > 0.1 in
# trained models, rounding in bfloat16 stays below 0.03.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
_PAGED_LAYERS = {"full_attention", "sliding_attention", "attention", "full", "sliding"}


def refuse_by_config(config: Any) -> None:
    """Raise ModelUnsupported with the reason if the config alone rules paging out."""
    text = config.get_text_config()
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelUnsupported(f"{name} is an encoder-decoder; only decoders can be served")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelUnsupported(f"{name} is no causal LM of transformers {transformers.__version__}")
    if getattr(text, "alibi", False) or name in ("bloom", "mpt"):
        raise ModelUnsupported(f"{name} uses ALiBi, a bias that paged attention does not have")
    kinds = set(getattr(text, "layer_types", None) or []) - _PAGED_LAYERS
    kinds |= set(getattr(text, "layers_block_type", None) or []) - _PAGED_LAYERS
    if kinds:
        raise ModelUnsupported(
            f"{name} has layers of kind {', '.join(sorted(kinds))}, which pages cannot serve"
        )


@torch.no_grad()
def run_eager(model: Any) -> Tensor:
    """Return the hidden states [20, H] of the probe by the model's own eager attention."""
    if getattr(model, "_is_stateful", False):
        raise ModelUnsupported(f"{model.config.model_type} keeps a recurrent state beside the KV")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ModelUnsupported(f"{model.config.model_type} does not take token positions")
    positions = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    out = model.base_model(
        input_ids=_probe_ids(model)[None], position_ids=positions, use_cache=False
    )
    hidden: Tensor = out[0][0]
    return hidden


@torch.no_grad()
def record_specs(model: Any) -> dict[int, AttentionSpec]:
    """Run the probe once and return the spec of every attention module, by id, in call order."""
    recorder = _Recorder(model.config.model_type)
    positions = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    with handled_by(recorder):
        model.base_model(input_ids=_probe_ids(model)[None], position_ids=positions, use_cache=False)
    if not recorder.specs:
        raise ModelUnsupported(f"{model.config.model_type} never calls the attention interface")
    return recorder.specs


@torch.no_grad()
def check_paged(
    model: PagedModel, expected: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare two copies of the probe in one pass, the second's last token decoded, with eager.

    Raises: ModelUnsupported if tokens see more or less than their own sequence through the pages.
    """
    num_pages = -(-_PROBE_TOKENS // _PAGE_SIZE)
    kv = KVCache(model.attention_specs, 1 + 2 * num_pages, _PAGE_SIZE, dtype, device)
    ids = _ids(model.vocab_size, device)
    tables = torch.arange(1, 1 + 2 * num_pages, device=device).view(num_pages, 2).T
    first = _pass(kv, tables, starts=[0, 0], ends=[_PROBE_TOKENS, _PROBE_TOKENS - 1])
    hidden = model.forward(torch.cat((ids, ids[:-1])), first)
    last = _pass(kv, tables[1:], starts=[_PROBE_TOKENS - 1], ends=[_PROBE_TOKENS])
    hidden = torch.cat((hidden, model.forward(ids[-1:], last))).float()
    reference = torch.cat((expected, expected)).float()
    error = (hidden - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-12)
    if not error.mean().item() < _TOLERANCE[dtype]:
        raise ModelUnsupported(
            "its tokens do not come out of paged attention as they do of its own: relative error "
            f"{error.mean().item():.1g}; something beside attention mixes tokens or biases scores"
        )


class _Recorder:
    """Answers attention calls densely for one sequence and notes their shapes."""

    def __init__(self, model_type: str) -> None:
        self.specs: dict[int, AttentionSpec] = {}
        self._model_type = model_type

    def attention(self, call: AttentionCall) -> Tensor:
        """Return causal attention, refusing what paged attention cannot do."""
        reason = _refusal(call)
        if id(call.module) in self.specs:
            reason = "runs one layer more than once per token"
        if reason is not None:
            raise ModelUnsupported(f"{self._model_type} {reason}")
        _, num_heads, num_tokens, dim = call.q.shape
        num_kv_heads = call.k.shape[1]
        self.specs[id(call.module)] = AttentionSpec(
            layer_idx=len(self.specs),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=dim,
            scale=call.scale,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
        )
        k = call.k.repeat_interleave(num_heads // num_kv_heads, 1)
        v = call.v.repeat_interleave(num_heads // num_kv_heads, 1)
        scores = call.q @ k.transpose(-1, -2) * call.scale
        hidden = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=k.device).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2)


def _refusal(call: AttentionCall) -> str | None:
    if call.mask is not None:
        return "passes a mask or bias of its own to attention"
    if call.extras.get("s_aux") is not None:
        return "has attention sinks, which paged attention does not have"
    if not call.extras.get("is_causal", getattr(call.module, "is_causal", True)):
        return "attends in both directions"
    if call.q.shape[2] != call.k.shape[2]:
        return "attends to keys of something else than its own tokens"
    if call.v.shape[-1] > call.k.shape[-1]:
        return f"has values wider than keys ({call.v.shape[-1]} > {call.k.shape[-1]})"
    return None


def _pass(kv: KVCache, tables: Tensor, *, starts: list[int], ends: list[int]) -> ForwardContext:
    device = tables.device
    query_lens = [end - start for start, end in zip(starts, ends, strict=True)]
    positions = torch.cat([torch.arange(*span) for span in zip(starts, ends, strict=True)])
    seqs = torch.repeat_interleave(torch.tensor(query_lens))
    positions, seqs = positions.to(device), seqs.to(device)
    pages = tables[seqs, positions // kv.page_size]
    return ForwardContext(
        kv=kv,
        positions=positions,
        slot_mapping=pages * kv.page_size + positions % kv.page_size,
        block_table=tables.int().contiguous(),
        context_lens=torch.tensor(ends, dtype=torch.int32, device=device),
        cu_seqlens_q=torch.tensor([0, *query_lens], device=device).cumsum(0).int(),
        query_lens=query_lens,
        context_lens_host=ends,
    )


def _probe_ids(model: Any) -> Tensor:
    return _ids(int(model.config.get_text_config().vocab_size), model.device)


def _ids(vocab_size: int, device: torch.device) -> Tensor:
    # Spread over the vocabulary, away from the special ids that crowd its start.
    steps = torch.arange(1, 1 + _PROBE_TOKENS, device=device)
    return steps * (vocab_size - 1) // (_PROBE_TOKENS + 1)
