"""The engine over FP8 weights and pages: the tokens of the same rounding done in plain torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.few_answers import few_answers
from models.triton_model import DEVICE, ON_GPU, TINY_SIZES, triton_backend
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.backends import TorchBackend
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelUnsupported, RequestRejected
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.models.decoder_config import Activation
from tokenbus.engine.models.linear_weight import Fp8BlockWeight, Fp8Weight, PlainWeight
from tokenbus.engine.models.ops import TorchOps
from tokenbus.engine.models.product import Product, TorchProduct
from tokenbus.engine.models.triton_products import TRITON_PRODUCTS, Fp8Product
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.engine.weights.loader import LoadedModel, build_model
from tokenbus.engine.weights.readers import RoundingReader

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.ops import Ops
    from tokenbus.engine.types import TokenLogprobs


def _rounded(x: Tensor) -> Tensor:
    """Round the last axis to e4m3 with a scale of its own, and back."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


# How far another kernel over the same FP8 pages moves a logprob: where one token attends, queries
# and weights are two numbers of e4m3 each; those of a prompt are as they are.
_TAKEOVER = 0.02
# The matrix unit of a Hopper GPU adds 32 products in FP8 to a sum with 13 binary places below the
# largest of them; what is beyond is cut off, of either sign. A model of it in integers, of sums of
# up to 208 random products, is off by up to 0.9 of this share of the products' sizes together.
_CUT = 2.0**-13


class _RoundingProduct(Product):
    """The product of an FP8 weight in float32: one row as it is, more rounded row by row.

    With `inexact` every sum of rounded rows is off by up to what a matrix unit may cut off it.
    """

    inexact = False

    def __init__(self, weight: Fp8Weight, bias: Tensor | None) -> None:
        self._values, self._bias = weight.dequantised(), bias

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out]."""
        rows = x if len(x) == 1 else _rounded(x)
        exact = torch.nn.functional.linear(rows, self._values, self._bias)
        if not self.inexact or len(x) == 1:
            return exact
        sizes = rows.abs() @ self._values.abs().T
        return exact + (2 * torch.rand_like(exact) - 1) * _CUT * sizes


class _InexactProduct(_RoundingProduct):
    """What a Hopper GPU may make of the same product."""

    inexact = True


class _RoundingAttention(TorchAttention):
    """Plain attention over keys and values that were rounded per token and head."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Round k and v, then attend."""
        return super().attend(q, _rounded(k), _rounded(v), spec, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TwinBackend(TorchBackend):
    """The rounding of a GPU in plain torch."""

    product: type[_RoundingProduct] = _RoundingProduct

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:
        """Return plain steps with the product above."""
        del shape, dtype
        plain = {PlainWeight: lambda weight, bias: TorchProduct(weight.values, bias)}
        return TorchOps(self.attention, plain | {Fp8Weight: self.product})


def _load(config: Any, weights: dict[str, Tensor], backend: Backend, *, fp8: bool) -> LoadedModel:
    reader = RoundingReader("fp8") if fp8 else None
    model = build_model(
        config, weights, backend, dtype=torch.float32, max_model_len=1024, reader=reader
    )
    return LoadedModel(model, config, None, (), 1024, "tiny", torch.float32, backend)


@pytest.mark.parametrize(
    ("family", "fp8_weights", "fp8_pages"),
    [
        pytest.param(LlamaConfig, True, True, id="llama: both", marks=pytest.mark.slow),
        pytest.param(Qwen2Config, True, False, id="qwen2, with biases: weights"),
    ],
)
def test_tokens_equal_those_of_the_same_rounding_in_torch(
    family: type[Any], fp8_weights: bool, fp8_pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row, few rows and prompts: what is rounded, and where, is what the twin says."""
    straight: list[int] = []
    row_to_pages = Fp8Product.row_to_pages

    def noted(self: Fp8Product, x: Tensor, *args: Any) -> Tensor:
        straight.append(len(x))
        return row_to_pages(self, x, *args)

    monkeypatch.setattr(Fp8Product, "row_to_pages", noted)
    torch.manual_seed(0)
    # One layer has every product.
    config = family(**(TINY_SIZES | {"initializer_range": 0.2, "num_hidden_layers": 1}))
    auto: Any = AutoModelForCausalLM
    weights = auto.from_config(config).state_dict()
    # Without graphs, which pad a prompt of one token: then it is no lone row, and rounded.
    kv_cache_dtype = "fp8" if fp8_pages else "auto"
    backend = replace(triton_backend(32), kv_cache_dtype=kv_cache_dtype, captures_steps=False)
    loaded = _load(config, weights, backend, fp8=fp8_weights)
    assert loaded.backend.kv_dtype(torch.float32).itemsize == (1 if fp8_pages else 4)
    tokens, scores = few_answers(loaded)
    # The heads of the lone row that decodes go straight from their projection to its pages.
    assert straight == [1] * config.num_hidden_layers
    attention = _RoundingAttention() if fp8_pages else TorchAttention()
    twin = _TwinBackend(device=DEVICE, attention=attention)
    expected, expected_scores = few_answers(_load(config, weights, twin, fp8=fp8_weights))
    assert tokens == expected
    # A number at the border between two of e4m3 may fall to either side; more do behind attention
    # over FP8 pages, whose queries and weights are two numbers of e4m3, as exact as bf16, and
    # behind the sums of a GPU, with which the twin's own answers move.
    most = 0.05 if fp8_pages else 0.02
    if ON_GPU:
        moved = _load(config, weights, replace(twin, product=_InexactProduct), fp8=fp8_weights)
        samples = [few_answers(moved) for _ in range(12)]
        # Near ties may give the twin other tokens, too, and scores of another text.
        moves = [float((s - expected_scores).abs().max()) for t, s in samples if t == expected]
        assert len(moves) >= 3
        most += 2 * max(moves)
        assert most < 0.8
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=most)


@pytest.mark.slow
def test_a_takeover_over_fp8_pages_goes_on_with_the_same_text() -> None:
    """Tokens of an earlier owner are a prompt here: they are rounded as they were when drawn."""
    torch.manual_seed(0)
    config = LlamaConfig(**(TINY_SIZES | {"initializer_range": 0.2}))
    classes: Any = AutoModelForCausalLM
    weights = classes.from_config(config).state_dict()
    backend = replace(triton_backend(8), kv_cache_dtype="fp8", captures_steps=False)
    loaded = _load(config, weights, backend, fp8=False)
    params = SamplingParams(max_tokens=5, temperature=0.0, logprobs=2)
    # The text crosses a page, whose tokens were drawn one by one the first time.
    request = Request(0, tuple(range(5, 19)), params)
    whole = _answer(loaded, request)
    tokens = tuple(item.token_id for item in whole)
    rest = _answer(loaded, replace(request, resumed_ids=(tokens[:3],)))
    assert len(rest) == 2
    for got, expected in zip(rest, whole[3:], strict=True):
        if got.token_id != expected.token_id:
            # The other token of a near tie, behind which both texts are right.
            (_, first), (other, second) = expected.top[:2]
            assert other == got.token_id
            assert first - second < 2 * _TAKEOVER
            break
        assert abs(got.logprob - expected.logprob) < _TAKEOVER


def _answer(loaded: LoadedModel, request: Request) -> list[TokenLogprobs]:
    config = EngineConfig("tiny", num_pages=20, page_size=16, max_num_seqs=8)
    engine = engine_for(loaded, config)
    engine.add(request)
    found: list[TokenLogprobs] = []
    while engine.has_work:
        for delta in engine.step().deltas:
            found.extend(delta.logprobs or ())
    engine.close()
    return found


@pytest.mark.parametrize("num_rows", [1, 3])
def test_blocks_of_fp8_weights_are_multiplied_by_as_in_torch(num_rows: int) -> None:
    """A layer's products over blocks: one row as it is, more rounded by 128 columns."""
    torch.manual_seed(0)
    values = torch.randn(48, 208).to(torch.float8_e4m3fn).to(DEVICE)
    scales = torch.rand(3, 2, device=DEVICE) + 0.1
    weight = Fp8BlockWeight(values, scales, 16, 128, torch.float32)
    bias = torch.randn(48, device=DEVICE)
    product: Any = TRITON_PRODUCTS[Fp8BlockWeight](weight, bias)
    x, norm = torch.randn(num_rows, 208, device=DEVICE), torch.randn(208, device=DEVICE)
    normed = torch.nn.functional.rms_norm(x, (208,), norm, 1e-6)
    rows, _ = product.norm_rounded(x, None, norm, 1e-6)
    for results, row, is_rounded in (
        (
            (product.multiply(x), product.added(x, torch.zeros(num_rows, 48, device=DEVICE))),
            x,
            num_rows > 1,
        ),
        ((product.unrounded(x), product.of_rounded(product.rounded(x))), x, True),
        ((product.normed(norm, 1e-6)(x),), normed, num_rows > 1),
        ((product.of_rounded(rows),), normed, True),
    ):
        _assert_blocks(results, row, weight, bias, is_rounded=is_rounded)
    expected = torch.nn.functional.linear(
        _by_groups(x) if num_rows > 1 else x, weight.dequantised(), bias
    )
    gate, up = expected.chunk(2, -1)
    acted = torch.nn.functional.silu(gate) * up
    assert (product.gated(x, Activation.SILU) - acted).norm() < 5e-3 * acted.norm()
    with pytest.raises(ModelUnsupported, match="blocks of 64 inputs"):
        TRITON_PRODUCTS[Fp8BlockWeight](replace(weight, block_inputs=64), None)


def _by_groups(x: Tensor) -> Tensor:
    return torch.cat([_rounded(part) for part in torch.split(x, 128, -1)], -1)


def _assert_blocks(
    results: tuple[Tensor, ...],
    x: Tensor,
    weight: Fp8BlockWeight,
    bias: Tensor,
    *,
    is_rounded: bool,
) -> None:
    """Compare with a product in torch but for what is cut off a sum, and the rounding of fp32.

    Where a norm is rounded, a number at a border may fall to its other side.
    """
    exact = _by_groups(x) if is_rounded else x
    expected = torch.nn.functional.linear(exact, weight.dequantised(), bias)
    slack = exact.abs() @ weight.dequantised().abs().T * (2 * _CUT if ON_GPU else 1e-5) + 1e-5
    for got in results:
        assert bool(((got - expected).abs() <= slack).all())


def test_an_fp8_weight_of_odd_size_is_refused() -> None:
    """What no tensor descriptor can describe is named when the model is loaded."""
    config = LlamaConfig(**(TINY_SIZES | {"intermediate_size": 120}))
    with pytest.raises(ModelUnsupported, match="16 does not divide"):
        build_model(
            config,
            None,
            triton_backend(4),
            dtype=torch.float32,
            max_model_len=64,
            reader=RoundingReader("fp8"),
        )


def test_pages_that_a_device_cannot_have_are_refused() -> None:
    """The setting is named, on a CPU and for weights that bf16 pages do not fit."""
    cpu = TorchBackend(device=torch.device("cpu"), attention=TorchAttention())
    with pytest.raises(RequestRejected, match="kv_cache_dtype"):
        cpu.check(EngineConfig("tiny", kv_cache_dtype="fp8"))
    gpu = replace(triton_backend(4), kv_cache_dtype="bf16")
    assert gpu.kv_dtype(torch.bfloat16) == torch.bfloat16
    with pytest.raises(RequestRejected, match="bf16 pages need bf16 weights"):
        gpu.kv_dtype(torch.float32)
    assert ON_GPU or gpu.device.type == "cpu"


def test_a_page_counts_what_its_tensors_take() -> None:
    """Memory for pages is divided by this: in FP8 it holds almost twice as many as in bf16."""
    layers = [AttentionSpec(idx, 32, 8, 128, 1.0) for idx in range(2)]
    fit = {}
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        cache = KVCache(layers, 3, 64, dtype, torch.device("cpu"))
        tensors = [*cache.k, *cache.v, *cache.k_scales, *cache.v_scales]
        num_bytes = KVCache.page_bytes(layers, 64, dtype)
        assert 3 * num_bytes == sum(tensor.nbytes for tensor in tensors)
        fit[dtype] = (1 << 30) // num_bytes
    assert fit[torch.float8_e4m3fn] > 1.9 * fit[torch.bfloat16]
