"""Kinds of weight: the numbers they stand for, and the products of devices by each of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.backends import cpu_backend, stepwise_backend
from models.greedy_driver import GreedyDriver, draw_prompts
from models.made_up import HalvedWeight
from models.triton_model import triton_backend
from transformers import LlamaConfig, Qwen2Config

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int4GroupWeight,
    Int4Weight,
    Int8GroupWeight,
    Int8Weight,
    PlainWeight,
    without_storage,
)
from tokenbus.engine.models.product import entry_of
from tokenbus.engine.models.triton_products import TRITON_PRODUCTS, TritonProduct
from tokenbus.engine.weights.loader import build_model
from tokenbus.engine.weights.readers import LinearShape, PlainReader
from tokenbus.engine.weights.rounding import round_to_fp8

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight

_DTYPE = torch.float32


def _steps(num_outputs: int, num_inputs: int, top: int) -> Tensor:
    return torch.randint(0, top + 1, (num_outputs, num_inputs), dtype=torch.uint8)


def _fp8(num_outputs: int, num_inputs: int) -> Fp8Weight:
    values = torch.randn(num_outputs, num_inputs).to(torch.float8_e4m3fn)
    return Fp8Weight(values, torch.rand(num_outputs) + 0.01, _DTYPE, input_scale=0.5)


def _fp8_blocks(num_outputs: int, num_inputs: int) -> Fp8BlockWeight:
    values = torch.randn(num_outputs, num_inputs).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-num_outputs // 24), -(-num_inputs // 40)) + 0.01
    return Fp8BlockWeight(values, scales, 24, 40, _DTYPE)


def _int4_groups(num_outputs: int, num_inputs: int) -> Int4GroupWeight:
    steps, groups = _steps(num_outputs, num_inputs, 15), -(-num_inputs // 20)
    packed = steps[:, ::2] | steps[:, 1::2] << 4
    scales = (torch.rand(num_outputs, groups) + 0.01).half()
    zeros = torch.randint(0, 17, (num_outputs, groups), dtype=torch.uint8)
    order = torch.randperm(num_inputs)
    return Int4GroupWeight(packed, scales, zeros, 20, _DTYPE, order)


def _int8_groups(num_outputs: int, num_inputs: int) -> Int8GroupWeight:
    scales = (torch.rand(num_outputs, 1) + 0.01).bfloat16()
    zeros = torch.randint(0, 257, (num_outputs, 1), dtype=torch.int16)
    return Int8GroupWeight(_steps(num_outputs, num_inputs, 255), scales, zeros, num_inputs, _DTYPE)


_MAKERS: dict[str, Any] = {
    "fp8": _fp8,
    "fp8-blocks": _fp8_blocks,
    "int4-groups": _int4_groups,
    "int8-groups": _int8_groups,
}


def _number(weight: Any, output: int, column: int) -> float:
    """Return one number of a weight, by the line of its kind in the table of kinds."""
    if isinstance(weight, Fp8Weight):
        return float(weight.values[output, column].float() * weight.scales[output])
    if isinstance(weight, Fp8BlockWeight):
        scale = weight.scales[output // weight.block_outputs, column // weight.block_inputs]
        return float(weight.values[output, column].float() * scale)
    group = column // weight.group_inputs
    if isinstance(weight, Int4GroupWeight):
        step = int(weight.steps[output, column // 2]) >> (column % 2 * 4) & 15
    else:
        step = int(weight.steps[output, column])
    difference = step - int(weight.zeros[output, group])
    return float(torch.tensor(difference).float() * weight.scales[output, group].float())


@pytest.mark.parametrize("name", _MAKERS)
def test_a_kind_stands_for_the_numbers_of_its_definition(name: str) -> None:
    """Each number is made of what is stored for it alone, at its own input."""
    torch.manual_seed(1)
    weight = _MAKERS[name](50, 100)
    numbers = weight.dequantised()
    assert (weight.shape, numbers.dtype) == ((50, 100), torch.float32)
    order = getattr(weight, "order", None)
    for output in range(50):
        for column in range(100):
            place = column if order is None else int(order[column])
            assert float(numbers[output, place]) == _number(weight, output, column)
    assert weight.nbytes < numbers.nbytes
    emptied = without_storage(weight)
    assert (emptied.shape, emptied.nbytes, emptied.dtype) == (
        weight.shape,
        weight.nbytes,
        weight.dtype,
    )


def test_rounded_kinds_stand_for_their_numbers_too() -> None:
    """Plain numbers, bytes and 4 bits with lows give what their definitions say."""
    torch.manual_seed(2)
    plain = torch.randn(6, 64)
    assert PlainWeight(plain).dequantised().equal(plain)
    values, scales = torch.randint(-127, 128, (6, 64), dtype=torch.int8), torch.rand(6)
    found = Int8Weight(values, scales, _DTYPE).dequantised()
    assert found.equal(values.float() * scales[:, None])
    steps = _steps(6, 64, 15)
    group_scales, lows = torch.rand(6, 2).bfloat16(), torch.randn(6, 2).bfloat16()
    four = Int4Weight(steps[:, ::2] | steps[:, 1::2] << 4, group_scales, lows, 32, _DTYPE)
    wide = [part.float().repeat_interleave(32, 1) for part in (group_scales, lows)]
    assert four.dequantised().equal(steps * wide[0] + wide[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_keeps_the_nearest_number_of_each_weight(dtype: torch.dtype) -> None:
    """No weight moves by more than half a step of float8; rows of zeros stay zeros."""
    torch.manual_seed(3)
    plain = (torch.randn(1500, 33) * torch.logspace(-6, 3, 1500)[:, None]).to(dtype)
    plain[7] = 0
    rounded = round_to_fp8(plain)
    assert (rounded.shape, rounded.dtype) == ((1500, 33), dtype)
    assert rounded.scales.isfinite().all()
    found, exact = rounded.dequantised(), plain.float()
    assert found[7].equal(exact[7])
    # Half of the last of 4 bits; below the least normal number, half of 2**-9 scales.
    step = (exact.abs() * 2**-4).maximum(rounded.scales[:, None] * 2**-10) * 1.0001
    assert ((found - exact).abs() <= step).all()


class _KindReader(PlainReader):
    """Makes a kind of made-up numbers of every matrix."""

    name = "made up"
    is_plain = False

    def __init__(self, name: str, dtype: torch.dtype, *, dense: bool) -> None:
        self._make, self._dtype, self._dense = _MAKERS[name], dtype, dense

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:
        """Return the same for a shape each time, or the numbers it stands for."""
        torch.manual_seed(shape.num_outputs)
        weight = self._make(*values.shape)
        return PlainWeight(weight.dequantised().to(self._dtype)) if self._dense else weight


@pytest.mark.parametrize("make", [cpu_backend, stepwise_backend], ids=["native", "torch"])
@pytest.mark.parametrize("name", _MAKERS)
def test_a_cpu_multiplies_by_every_kind(
    name: str, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens are those of the numbers that weights stand for; the log says how they are kept."""
    config = LlamaConfig(**tiny_sizes(eos_token_id=None))
    weights, texts = draw_model(config).state_dict(), draw_prompts(199, [3, 40])
    answers = []
    for dense in (True, False):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = build_model(
                config,
                weights,
                make(),
                dtype=_DTYPE,
                max_model_len=1024,
                reader=_KindReader(name, _DTYPE, dense=dense),
            )
        assert ("weights.widened" in caplog.text) is not dense
        answers.append(GreedyDriver(model).generate(texts, 12))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["int4-groups", "int8-groups"])
def test_a_gpu_without_a_kernel_for_a_kind_keeps_its_numbers(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Products are those of the numbers, the log says so, and what was read is let go."""
    config, backend = LlamaConfig(**tiny_sizes()), triton_backend(4)
    reader = _KindReader(name, _DTYPE, dense=False)
    with caplog.at_level(logging.WARNING):
        model: Any = build_model(
            config, None, backend, dtype=_DTYPE, max_model_len=64, reader=reader
        )
    assert "weights.widened" in caplog.text
    linear = model.tensors.layers[0].o
    assert isinstance(linear.product, TritonProduct)
    assert linear.weight.scales.is_meta
    torch.manual_seed(linear.weight.shape[0])
    numbers = _MAKERS[name](*linear.weight.shape).dequantised()
    x = torch.randn(3, numbers.shape[1])
    found = linear.product.multiply(x.to(backend.device)).cpu()
    torch.testing.assert_close(found, x @ numbers.T, rtol=1e-4, atol=1e-4)


def test_a_kind_that_a_device_does_not_know_is_named() -> None:
    """No kind is multiplied by as if it were another one."""
    plain = PlainWeight(torch.randn(4, 4))
    with pytest.raises(ModelUnsupported, match=r"HalvedWeight.*PlainWeight.*Int4GroupWeight"):
        entry_of(TRITON_PRODUCTS, HalvedWeight(plain, plain))


def test_few_layers_stand_for_all() -> None:
    """Two of each kind are left and the last one, inside alone: what all layers launch, they do."""
    window: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 3,
    }
    config = Qwen2Config(**tiny_sizes(num_hidden_layers=7), **window)
    decoder: Any = build_model(config, None, stepwise_backend(), dtype=_DTYPE, max_model_len=64)
    layers = decoder.tensors.layers
    odd = layers[5]
    odd.o.weight = round_to_fp8(odd.o.weight.values)
    with decoder.abridged():
        assert [layer.spec.layer_idx for layer in decoder.tensors.layers] == [0, 1, 3, 4, 5, 6]
    assert decoder.tensors.layers is layers
