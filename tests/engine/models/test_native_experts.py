"""Mixtures of experts on a CPU's compiled kernels, against plain torch over the same weights."""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import MIXTURES, draw_model, tiny_sizes
from models.backends import cpu_backend, stepwise_backend

from tokenbus.engine.models.decoder_config import Activation, MixtureShape
from tokenbus.engine.models.experts.torch_experts import TorchMixture
from tokenbus.engine.models.layers import Linear, Mixture
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.models.native.native_experts import NativeMixture
from tokenbus.engine.native_library import native_library
from tokenbus.engine.weights.loader import build_model
from tokenbus.engine.weights.rounding import (
    round_to_fp8,
    round_to_int4,
    round_to_int4_groups,
    round_to_int8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.kernels.cpu.native import NativeLibrary

_KINDS: dict[str, Callable[[Tensor], Any]] = {
    "plain": PlainWeight,
    "fp8": round_to_fp8,
    "int8": round_to_int8,
    "int4": round_to_int4,
    "int4-groups": round_to_int4_groups,
}


@cache
def _library() -> NativeLibrary:
    found = native_library()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def _mixture(kind: str, dtype: torch.dtype, width: int, inner: int) -> Mixture:
    """Draw seven experts, two for each token."""
    torch.manual_seed(1)
    gate_up = torch.randn(7 * 2 * inner, width) / width**0.5
    down = torch.randn(7 * width, inner) / inner**0.5
    make = _KINDS[kind]
    return Mixture(
        MixtureShape(7, 2, inner),
        torch.randn(7, width).to(dtype),
        Linear(make(gate_up.to(dtype))),
        Linear(make(down.to(dtype))),
        None,
    )


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(
    ("dtype", "width", "inner", "activation"),
    [
        (torch.float32, 64, 34, Activation.SILU),
        (torch.bfloat16, 130, 96, Activation.GELU_TANH),
    ],
    ids=["fp32", "bf16"],
)
def test_sums_equal_plain_torch(
    kind: str, dtype: torch.dtype, width: int, inner: int, activation: Activation
) -> None:
    """One row, a few, more than an expert's block holds; sizes that fill no panel."""
    mixture = _mixture(kind, dtype, width, inner)
    expected = TorchMixture(copy.copy(mixture), activation)
    ours = NativeMixture(mixture, activation, _library())
    assert mixture.gate_up.weight.shape == (7 * 2 * inner, width)
    x = torch.randn(300, width).to(dtype)
    x[250:] = x[249]
    most = 1e-5 if dtype == torch.float32 else 2e-2
    for rows in (x[:1], x[1:6], x):
        got, wanted = ours.mix(rows).float(), expected.mix(rows).float()
        assert ((got - wanted).norm(dim=1) <= most * wanted.norm(dim=1)).all()


def test_a_broken_row_breaks_no_other() -> None:
    """NaN stays in its row; a row is summed alike whichever rows are beside it."""
    ours = NativeMixture(_mixture("plain", torch.float32, 64, 32), Activation.SILU, _library())
    x = torch.randn(9, 64)
    whole = ours.mix(x)
    x[4] = torch.nan
    broken = ours.mix(x)
    assert broken[4].isnan().all()
    keep = [row for row in range(9) if row != 4]
    assert torch.equal(broken[keep], whole[keep])


@pytest.mark.parametrize("name", ["qwen2_moe", "granitemoe"])
def test_a_cpu_s_experts_are_compiled(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The backend of a CPU binds mixtures to the kernels; plain torch says that it is slower."""
    _library()
    caplog.set_level(logging.INFO)
    config_class, changes = MIXTURES[name]
    model = draw_model(config_class(**tiny_sizes(**changes)))
    options: dict[str, Any] = {"dtype": torch.float32, "max_model_len": 64}
    for backend, is_plain in ((cpu_backend(), False), (stepwise_backend(), True)):
        caplog.clear()
        built: Any = build_model(model.config, model.state_dict(), backend, **options)
        mixtures = built.tensors.mixtures()
        assert mixtures
        assert all(isinstance(item.product, NativeMixture) is not is_plain for item in mixtures)
        assert any("experts.plain" in text for text in caplog.messages) is is_plain
