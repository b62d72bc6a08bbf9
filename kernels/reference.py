"""The torch twin of every kernel: slow, obvious, and what the tests compare with.

Twins compute in fp32; those of sampling in fp64, since a draw has to be the same token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.draw_outcomes import BROKEN_ROW, EMPTY_ROW

if TYPE_CHECKING:
    from torch import Tensor


def gather_pages(pages: Tensor, table_row: Tensor, length: int) -> Tensor:
    """Collect the first tokens of one sequence: [P, Hkv, S, D] -> [Hkv, length, D] fp32."""
    page_size = pages.shape[2]
    used = table_row[: -(-length // page_size)].long()
    tokens = pages[used].transpose(0, 1).reshape(pages.shape[1], -1, pages.shape[3])
    return tokens[:, :length].float()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend the last L tokens of one sequence causally: q [L, Hq, D], k, v [Hkv, C, D]."""
    length, num_heads, _ = q.shape
    context = k.shape[1]
    groups = num_heads // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = torch.einsum("lhd,hcd->hlc", q.float(), k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    query_at = torch.arange(context - length, context, device=q.device)[:, None]
    key_at = torch.arange(context, device=q.device)[None, :]
    hidden = key_at > query_at
    if sliding_window is not None:
        hidden = hidden | (key_at <= query_at - sliding_window)
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hlc,hcd->lhd", scores.softmax(-1), v)


def paged_prefill(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    cu_seqlens_q: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Twin of `paged_prefill`; rows past cu_seqlens_q[-1] are zero."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    borders = cu_seqlens_q.tolist()
    for n, context in enumerate(context_lens.tolist()):
        first, last = borders[n], borders[n + 1]
        if last > first:
            k = gather_pages(k_pages, block_table[n], context)
            v = gather_pages(v_pages, block_table[n], context)
            out[first:last] = attend(
                q[first:last], k, v, scale=scale, sliding_window=sliding_window, softcap=softcap
            )
    return out


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Twin of `paged_decode`; rows of length 0 are zero."""
    queries = (context_lens > 0).int().cumsum(0)
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    active = context_lens > 0
    out[active] = paged_prefill(
        q[active], k_pages, v_pages, block_table[active], context_lens[active],
        torch.cat([queries.new_zeros(1), queries[active]]),
        scale=scale, sliding_window=sliding_window, softcap=softcap,
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, add_one: bool = False) -> Tensor:
    """Normalise the last axis by its root mean square; the weight is w or 1 + w."""
    x = x.float()
    scale = weight.float() + 1.0 if add_one else weight.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R of D dims, halves paired: x [T, H, D], cos, sin [T, R]."""
    half = cos.shape[-1] // 2
    x = x.float()
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    turned = [a * c[..., :half] - b * s[..., :half], b * c[..., half:] + a * s[..., half:]]
    return torch.cat([*turned, rest], -1)


def gated_act(gate_up: Tensor, kind: str) -> Tensor:
    """act(gate) * up of [T, 2 I]; kind is `silu` or `gelu_tanh`."""
    gate, up = gate_up.float().chunk(2, -1)
    if kind == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def probability_cut(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Return [M] the smallest probability that top-k, then top-p, then min-p keep.

    probs: [M, V] fp64. Ties of the k-th token stay, but do not count to what top-p weighs.
    """
    num_tokens = probs.shape[-1]
    ranked = probs.sort(-1, descending=True).values
    k = torch.where(top_k > 0, top_k, num_tokens).clamp(max=num_tokens).long()
    rank = torch.arange(num_tokens, device=probs.device)
    kept = torch.where(rank < k[:, None], ranked, 0.0)
    kth = ranked.gather(-1, (k - 1)[:, None])[:, 0]
    running = kept.cumsum(-1)
    inside = (running - kept < top_p.double()[:, None] * running[:, -1:]) & (rank < k[:, None])
    num_inside = inside.sum(-1).clamp(min=1)
    nucleus = ranked.gather(-1, (num_inside - 1)[:, None])[:, 0]
    cut = torch.where(top_p < 1, nucleus, 0.0).maximum(torch.where(top_k > 0, kth, 0.0))
    return cut.maximum(min_p.double() * ranked[:, 0])


def draw_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    u: Tensor,
    is_random: Tensor,
) -> Tensor:
    """Twin of `draw_rows`, in fp64: whole rows are sorted."""
    top = logits.double().amax(-1)
    probs = (logits.double() / temperature.double()[:, None]).softmax(-1)
    weights = probs * (probs >= probability_cut(probs, top_k, top_p, min_p)[:, None])
    running = weights.cumsum(-1)
    chosen = (running > u.double()[:, None] * running[:, -1:]).int().argmax(-1)
    token_ids = torch.where(is_random.bool(), chosen, logits.argmax(-1))
    token_ids = torch.where(top == float("-inf"), EMPTY_ROW, token_ids)
    return torch.where(top < float("inf"), token_ids, BROKEN_ROW)


def fused_linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_add_one: bool = False,
    eps: float = 1e-6,
    bias: Tensor | None = None,
    act: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Twin of `small_linear`: norm, product, bias, gate and residual, one after the other."""
    value = x.float()
    if norm_weight is not None:
        value = rms_norm(value, norm_weight, eps, add_one=norm_add_one)
    value = value @ weight.float().T
    if bias is not None:
        value = value + bias.float()
    if act is not None:
        value = gated_act(value, act)
    return value if residual is None else value + residual.float()
