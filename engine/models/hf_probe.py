"""Probes of a transformers model: what is found out before it may run on pages."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.activations import ACT2FN

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.models.hf_hook import AttentionCall, handled_by

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from tokenbus.engine.interfaces import PagedModel

# More tokens than a page holds, in the smallest page that every backend takes.
_PROBE_TOKENS = 20
_PAGE_SIZE = 16
# Keys that a query of the probe sees where the model has a window.
_PROBE_WINDOW = 5
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
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(text, "alibi", False) or name in ("bloom", "mpt"):
        raise ModelUnsupported(f"{name} uses ALiBi, a bias that paged attention does not have")
    kinds = set(getattr(text, "layer_types", None) or []) - _PAGED_LAYERS
    kinds |= set(getattr(text, "layers_block_type", None) or []) - _PAGED_LAYERS
    if kinds:
        raise ModelUnsupported(
            f"{name} has layers of kind {', '.join(sorted(kinds))}, which pages cannot serve"
        )
    if getattr(family, "_is_stateful", False):
        raise ModelUnsupported(f"{name} keeps a recurrent state beside the KV")
    for field in ("hidden_act", "hidden_activation"):
        activation = getattr(text, field, None)
        if isinstance(activation, str) and activation not in ACT2FN:
            raise ModelUnsupported(f"{name} has the {field} {activation!r}, which is not known")
    if not getattr(family, "_supports_attention_backend", False):
        raise ModelUnsupported(
            f"{name} does not send its attention through transformers' interface"
        )


@torch.no_grad()
def run_eager(model: Any) -> tuple[Tensor, Tensor]:
    """Run the probe by the model's own eager attention.

    Returns: hidden states [20, H], and logits of the last token [1, V] float32.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise ModelUnsupported(f"{model.config.model_type} does not take token positions")
    hidden: Tensor = _run(model.base_model, model)[0][0]
    logits: Tensor = _run(model, model).logits[0, -1:]
    return hidden, logits.float()


@torch.no_grad()
def check_head(model: PagedModel, hidden: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare the logits of the probe's last token, made of its hidden state alone, with eager.

    Raises: ModelUnsupported if they are others.
    """
    logits = model.logits(hidden[-1:])
    if logits.shape != expected.shape:
        raise ModelUnsupported(
            f"its head gives {logits.shape[-1]} logits, alone, and {expected.shape[-1]} behind"
            " its layers"
        )
    error = ((logits - expected).norm() / expected.norm().clamp_min(1e-12)).item()
    if not error < _TOLERANCE[dtype]:
        raise ModelUnsupported(
            f"its head needs more than hidden states: relative error {error:.1g} of logits"
        )


def _run(part: Any, model: Any) -> Any:
    """Run the probe through a model or a part of it."""
    positions = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    return part(input_ids=_probe_ids(model)[None], position_ids=positions, use_cache=False)


@torch.no_grad()
def find_windows(model: Any) -> set[int]:
    """Return the attention modules, by id, whose tokens see a window of keys by their mask.

    Some families put it into the mask alone. It is narrowed for the probe, so as to show in it.
    Expects the attention of `hf_hook` with masks.
    """
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not isinstance(window, int):
        return set()
    reader = _MaskReader()
    text.sliding_window = _PROBE_WINDOW
    try:
        with handled_by(reader):
            _run(model.base_model, model)
    finally:
        text.sliding_window = window
    return reader.windowed


@torch.no_grad()
def record_specs(model: Any, windowed: Collection[int] = ()) -> dict[int, AttentionSpec]:
    """Run the probe once and return the spec of every attention module, by id, in call order.

    Args:
        windowed: modules that see a window of keys, whether they say so or not.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    recorder = _Recorder(model.config.model_type, dict.fromkeys(windowed, window))
    with handled_by(recorder):
        _run(model.base_model, model)
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

    def __init__(self, model_type: str, windows: Mapping[int, int | None]) -> None:
        self.specs: dict[int, AttentionSpec] = {}
        self._model_type, self._windows = model_type, windows

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
            sliding_window=call.sliding_window or self._windows.get(id(call.module)),
            softcap=call.softcap,
        )
        k = call.k.repeat_interleave(num_heads // num_kv_heads, 1)
        v = call.v.repeat_interleave(num_heads // num_kv_heads, 1)
        scores = call.q @ k.transpose(-1, -2) * call.scale
        hidden = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=k.device).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2)


class _MaskReader:
    """Answers attention calls with anything, and notes the modules whose mask is a window."""

    def __init__(self) -> None:
        self.windowed: set[int] = set()

    def attention(self, call: AttentionCall) -> Tensor:
        """Return the values of each token itself."""
        # The last token's row; what it must not see is False, or far below zero.
        if call.mask is not None and call.mask.ndim == 4:
            row = call.mask[0, 0, -1]
            hidden = ~row if row.dtype is torch.bool else row < -1
            if hidden[:-_PROBE_WINDOW].any():
                self.windowed.add(id(call.module))
        values = call.v.repeat_interleave(call.q.shape[1] // call.v.shape[1], 1)
        return values.transpose(1, 2)


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
