"""The hook through which transformers models reach paged attention."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# No mask function is registered under this name, so transformers builds no mask at all.
ATTENTION_NAME = "tokenbus_paged"
# The same with the masks of transformers' eager attention.
MASKED_NAME = "tokenbus_masked"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of a model's attention; q: [1, Hq, T, D], k: [1, Hkv, T, D], v: [1, Hkv, T, Dv].

    `extras` are keyword arguments that only some families pass.
    """

    module: Any
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    sliding_window: int | None
    softcap: float | None
    extras: dict[str, Any]


class AttentionHandler(Protocol):
    """The handler of attention calls while a model runs."""

    def attention(self, call: AttentionCall) -> Tensor:
        """Return [1, T, Hq, Dv]."""
        ...


_HANDLER: ContextVar[AttentionHandler] = ContextVar("tokenbus_attention_handler")


@contextmanager
def handled_by(handler: AttentionHandler) -> Iterator[None]:
    """Send every attention call inside the block to `handler`."""
    token = _HANDLER.set(handler)
    try:
        yield
    finally:
        _HANDLER.reset(token)


def register() -> None:
    """Make the hook known to transformers under both names."""
    AttentionInterface.register(ATTENTION_NAME, _attention)
    AttentionInterface.register(MASKED_NAME, _attention)
    AttentionMaskInterface.register(MASKED_NAME, eager_mask)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - transformers passes it, inference has none
    **extras: Any,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    call = AttentionCall(
        module, query, key, value, attention_mask, scale, sliding_window, softcap, extras
    )
    # Some families look at the output as rows of another width.
    return _HANDLER.get().attention(call).contiguous(), None
