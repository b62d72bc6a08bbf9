"""The engine over weights of four bits on a GPU: the tokens of what these stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.few_answers import few_answers
from models.triton_model import DEVICE, TINY_SIZES, triton_backend
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.backends import TorchBackend
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.models.decoder_config import Activation
from tokenbus.engine.models.linear_weight import Int4GroupWeight, PlainWeight
from tokenbus.engine.models.triton_products import MAX_STEPS_ROWS, Int4Product
from tokenbus.engine.weights.loader import LoadedModel, build_model
from tokenbus.engine.weights.readers import LinearShape, PlainReader, choose_reader
from tokenbus.engine.weights.rounding import round_to_int4_groups

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.readers import WeightReader


class _OrderedReader(PlainReader):
    """Rounds to groups of 32 inputs in an order of their own, as `desc_act` leaves them."""

    name = "made up"
    is_plain = False

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:
        """values: [out, in] -> four bits, but for the head."""
        if shape.is_head:
            return PlainWeight(values)
        num_outputs, num_inputs = values.shape
        order = torch.randperm(num_inputs, generator=torch.Generator().manual_seed(num_inputs))
        groups = values[:, order.to(values.device)].float().view(num_outputs, -1, 32)
        scales = (groups.abs().amax(2) / 7).half()
        steps = (groups / scales.float()[..., None] + 8).round_().clamp_(0, 15)
        steps = steps.to(torch.uint8).view(num_outputs, num_inputs)
        packed = steps[:, ::2] | steps[:, 1::2] << 4
        zeros = torch.full_like(scales, 8, dtype=torch.uint8)
        order = order.to(values.device)
        return Int4GroupWeight(packed, scales, zeros, 32, values.dtype, order)


def _answers(config: Any, weights: dict[str, Tensor], backend: Backend, reader: WeightReader,
             dtype: torch.dtype) -> tuple[list[list[int]], Tensor]:  # fmt: skip
    """Return the greedy tokens of every prompt and their log-probabilities."""
    model: Any = build_model(
        config, weights, backend, dtype=dtype, max_model_len=1024, reader=reader
    )
    kinds = {type(item.weight) for item in model.tensors.linears()[:-1]}
    assert kinds == {Int4GroupWeight}
    loaded = LoadedModel(model, config, None, (), 1024, "tiny", dtype, backend)
    return few_answers(loaded)


@pytest.mark.parametrize(
    ("family", "reader", "dtype"),
    [
        pytest.param(
            LlamaConfig,
            choose_reader("int4", grouped=True),
            torch.float16,
            marks=pytest.mark.slow,
            id="llama: rounded while loading, rows split",
        ),
        pytest.param(
            Qwen2Config,
            _OrderedReader(),
            torch.float32,
            marks=pytest.mark.slow,
            id="qwen2, with biases: an order of inputs",
        ),
    ],
)
def test_tokens_equal_those_of_the_dequantised_model(
    family: type[Any], reader: WeightReader, dtype: torch.dtype
) -> None:
    """One row, few rows and prompts; the twin multiplies by the dequantised weights in float32."""
    torch.manual_seed(0)
    config = family(**TINY_SIZES)
    auto: Any = AutoModelForCausalLM
    weights = {name: item.to(dtype) for name, item in auto.from_config(config).state_dict().items()}
    tokens, scores = _answers(config, weights, triton_backend(32), reader, dtype)
    twin = TorchBackend(device=DEVICE, attention=TorchAttention())
    exact = {name: item.float() for name, item in weights.items()}
    expected, expected_scores = _answers(config, exact, twin, reader, torch.float32)
    assert tokens == expected
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=0.02)


def _rounded_rows(values: Tensor) -> Tensor:
    """Round each row to e4m3 with a scale of its own, and back."""
    scale = values.float().abs().amax(1, keepdim=True) / 448
    return (values.float() / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("gated", [False, True], ids=["product", "gate"])
def test_many_rows_meet_the_weight_in_fp8(gated: bool) -> None:
    """Few rows read the steps; more are rounded, inputs in the order of the rows."""
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    shape = LinearShape((), 256, torch.float16, DEVICE)
    weight: Any = _OrderedReader().kind_of(values.half(), shape)
    exact = weight.dequantised()
    product = Int4Product(weight, None)
    assert product.may_be_rounded
    assert product.rounded_bytes == exact.numel()
    product.keep_rounded()
    for num_rows in (MAX_STEPS_ROWS, MAX_STEPS_ROWS + 1):
        x = values.flip(1).repeat(2, 1)[:num_rows].half()
        rounds = num_rows > MAX_STEPS_ROWS
        expected = _rounded_rows(x) @ _rounded_rows(exact).T if rounds else x.float() @ exact.T
        if gated:
            found = product.gated(x, Activation.SILU)
            gates, ups = expected.chunk(2, 1)
            expected = torch.nn.functional.silu(gates) * ups
        else:
            found = product.multiply(x)
        # What was not rounded is 4e-2 away, a tie that went the other way less than 1e-2.
        assert (found.float() - expected).norm() < 1.2e-2 * expected.norm()


def test_a_gpu_takes_int4_with_whole_zero_points() -> None:
    """The setting is accepted, layers are rounded for the kernels, and the head stays."""
    backend = triton_backend(4)
    backend.check(EngineConfig("tiny", quantization="int4"))
    reader = choose_reader("int4", grouped=backend.groups_int4)
    config = LlamaConfig(**TINY_SIZES)
    model: Any = build_model(
        config, None, backend, dtype=torch.float32, max_model_len=64, reader=reader
    )
    linears = model.tensors.linears()
    assert {type(item.weight) for item in linears[:-1]} == {Int4GroupWeight}
    assert {item.weight.group_inputs for item in linears[:-1]} == {128}
    assert all(item.weight.steps.is_meta for item in linears[:-1])
    assert type(linears[-1].weight) is PlainWeight


@pytest.mark.parametrize("num_inputs", [128, 200, 384])
def test_groups_of_four_bits_stay_within_half_a_step(num_inputs: int) -> None:
    """Every number, zero among them, however large its group's are; a group of zeros stays zero."""
    torch.manual_seed(1)
    plain = torch.randn(40, num_inputs) * torch.logspace(-4, 2, 40)[:, None] + 0.01
    plain[3], plain[:, 5] = 0, 0
    rounded = round_to_int4_groups(plain)
    found = rounded.dequantised()
    assert found[3].equal(plain[3])
    assert not found[:, 5].any()
    groups = torch.arange(num_inputs) // 128
    step = rounded.scales.float()[:, groups]
    # The scale itself is rounded to bfloat16: fifteen steps reach less far by up to 15 * 2**-9.
    assert bool(((found - plain).abs() <= 0.56 * step + 1e-12).all())
    assert rounded.nbytes <= 40 * (num_inputs // 2 + 3 * (groups[-1] + 1))
