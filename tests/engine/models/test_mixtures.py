"""Mixtures of experts: routing as transformers', over cached prefixes, on every device."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from models.architectures import MIXTURES, draw_model, tiny_sizes
from models.backends import cpu_backend, stepwise_backend
from models.greedy_driver import GreedyDriver, Reference, draw_prompts
from models.triton_model import load_on_triton, triton_backend
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from tokenbus.engine.bench.measure import watch_routing
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.models.decoder_config import MixtureShape
from tokenbus.engine.models.experts.torch_experts import TorchMixture, choose_experts
from tokenbus.engine.models.families import decoder_config
from tokenbus.engine.models.linear_weight import Fp8BlockWeight, PlainWeight
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.engine.weights.loader import LoadedModel, build_model
from tokenbus.engine.weights.readers import PlainReader
from tokenbus.engine.weights.rounding import round_to_fp8

if TYPE_CHECKING:
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.readers import LinearShape

_ROUTERS: dict[str, tuple[Any, MixtureShape]] = {
    "qwen3_moe": (Qwen3MoeTopKRouter, MixtureShape(12, 3, 32, renormalise=False)),
    "mixtral": (MixtralTopKRouter, MixtureShape(12, 3, 32)),
    "granitemoe": (GraniteMoeTopKRouter, MixtureShape(12, 3, 32, by_logits=True)),
}


def _config(name: str, **changes: Any) -> Any:
    config_class, more = MIXTURES[name]
    return config_class(**tiny_sizes(**more | changes))


@pytest.mark.parametrize("name", _ROUTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_between_experts_are_broken_as_in_transformers(name: str, dtype: torch.dtype) -> None:
    """Rows with few different logits, all equal ones, and one that is beyond softmax's reach."""
    torch.manual_seed(0)
    router_class, shape = _ROUTERS[name]
    config = _config(
        name,
        hidden_size=12,
        num_attention_heads=2,
        num_experts_per_tok=3,
        **{"num_experts" if name == "qwen3_moe" else "num_local_experts": 12},
        **({"norm_topk_prob": False} if name == "qwen3_moe" else {}),
    )
    router = router_class(config).to(dtype)
    torch.nn.init.eye_(router.weight)
    logits = torch.randint(-2, 3, (200, 12)).to(dtype)
    logits[0], logits[1] = 1.0, torch.tensor([300.0, *[-0.0, 0.0] * 5, -1.0])
    with torch.no_grad():
        parts = router(logits)
    # Their order depends on the version: experts are whole numbers, weights one for each of them.
    (experts,) = (part for part in parts if not part.is_floating_point())
    (weights,) = (
        part for part in parts if part.is_floating_point() and part.shape == experts.shape
    )
    ours = choose_experts(logits, shape)
    assert torch.equal(ours[0], experts)
    torch.testing.assert_close(ours[1].to(weights.dtype), weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "qwen2_moe",
        *(pytest.param(name, marks=pytest.mark.slow) for name in MIXTURES if name != "qwen2_moe"),
    ],
)
def test_tokens_behind_a_cached_prefix_equal_transformers(name: str) -> None:
    """A prompt whose beginning is cached, whole pages and part of the next, changes no token."""
    config = _config(name)
    reference, backend = draw_model(config), cpu_backend()
    model = build_model(
        config, reference.state_dict(), backend, dtype=torch.float32, max_model_len=700
    )
    assert isinstance(model, Decoder)
    loaded = LoadedModel(model, config, None, (), 700, name, torch.float32, backend)
    engine = engine_for(loaded, EngineConfig(name, num_pages=60, page_size=16, max_num_seqs=4))
    (prefix,) = draw_prompts(199, [70])
    prompts = [prefix, [*prefix, 9, 8, 7], [*prefix[:40], 5], [*prefix, 9, 8, 7, 6]]
    greedy = SamplingParams(temperature=0.0, max_tokens=12)
    answers: list[list[int]] = [[] for _ in prompts]
    for idx, prompt in enumerate(prompts):
        engine.add(Request(idx, tuple(prompt), greedy))
        while engine.has_work:
            for delta in engine.step().deltas:
                answers[delta.request_id].extend(delta.token_ids)
    assert engine.stats().cached_tokens_total >= 64 + 32 + 64
    assert answers == Reference(reference).generate(prompts, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_triton_s_mixtures_equal_transformers(name: str) -> None:
    """A lone row, a few of them and a prompt's many take kernels of their own."""
    config = _config(name, num_attention_heads=4, num_hidden_layers=2)
    reference = draw_model(config)
    loaded = load_on_triton(config, reference.state_dict(), max_rows=32)
    prompts = draw_prompts(199, [20, 3])
    expected = Reference(reference).generate(prompts, 3)
    for texts, answers in ((prompts, expected), (prompts[1:], expected[1:])):
        assert GreedyDriver(loaded.model, page_size=16).generate(texts, 3) == answers


@pytest.mark.parametrize("block", [0, pytest.param(16, marks=pytest.mark.slow)])
def test_fp8_experts_on_triton_stay_near_their_numbers(
    block: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One row is not rounded; several are, once before and once between the two products."""
    torch.manual_seed(0)
    config = _config("qwen3_moe", num_attention_heads=4, num_hidden_layers=2)
    weights = draw_model(config).state_dict()
    backend = triton_backend(32)
    model: Any = build_model(
        config, weights, backend, dtype=torch.float32, max_model_len=64, reader=_Fp8Reader(block)
    )
    (mixture,) = model.tensors.mixtures()
    assert not mixture.product.is_plain
    assert not any("weights.widened" in text and "Fp8" in text for text in caplog.messages)
    expected = TorchMixture(mixture, model.config.activation)
    # Neighbours in the list of experts differ, so that no row gets another one's.
    x = torch.randn(20, 64, device=backend.device)
    for rows, most in ((1, 1e-3), (5, 0.1), (20, 0.1)):
        got, wanted = mixture.product.mix(x[:rows]), expected.mix(x[:rows])
        assert ((got - wanted).norm(dim=1) <= most * wanted.norm(dim=1)).all(), rows


class _Fp8Reader(PlainReader):
    """Rounds plain weights to FP8, with a scale per output or per block of so many outputs."""

    is_plain = False

    def __init__(self, block: int) -> None:
        self._block = block

    def kind_of(self, values: torch.Tensor, shape: LinearShape) -> LinearWeight:
        """values: [out, in] -> the same, rounded."""
        if shape.is_head or not any("experts." in name for name, _ in shape.parts):
            return PlainWeight(values)
        if not self._block:
            return round_to_fp8(values)
        blocks = -(-values.shape[1] // 128)
        tops = values.view(-1, self._block, values.shape[1]).abs().amax(1)
        tops = F.pad(tops, (0, blocks * 128 - tops.shape[1])).view(-1, blocks, 128).amax(2)
        scales = tops / 448
        spread = scales.repeat_interleave(self._block, 0).repeat_interleave(128, 1)
        rounded = (values / spread[:, : values.shape[1]]).to(torch.float8_e4m3fn)
        return Fp8BlockWeight(rounded, scales, self._block, 128, values.dtype)


def test_experts_in_plain_torch_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Who runs a mixture where it has no kernels finds that in the log."""
    caplog.set_level(logging.INFO)
    config = _config("mixtral")
    build_model(config, None, stepwise_backend(), dtype=torch.float32, max_model_len=64)
    assert any("experts run in plain torch" in text for text in caplog.messages)


def test_what_no_kernel_has_runs_in_transformers_code() -> None:
    """Clipped projections and gates of another kind are not the decoder's."""
    assert decoder_config(_config("olmoe", clip_qkv=8.0)) is None
    assert decoder_config(_config("mixtral", hidden_act="gelu")) is None
    dense = decoder_config(_config("qwen3_moe", num_experts=0))
    assert dense is not None
    assert not any(layer.is_mixture for layer in dense.layers)


def test_a_watch_counts_experts_and_makes_routing_uniform() -> None:
    """The mean over layers and passes; of 4 of 64 experts for each of 16 tokens, most are used."""
    torch.manual_seed(0)
    config = _config("olmoe", num_experts=64)
    model: Any = build_model(
        config, None, stepwise_backend(), dtype=torch.float32, max_model_len=64
    )
    x = torch.randn(1, 64) + torch.randn(16, 64) * 0.01
    means = []
    for is_uniform in (False, True):
        watch = watch_routing(model, is_uniform=is_uniform)
        assert watch is not None
        for layer in model.tensors.layers:
            layer.mlp.product.mix(x)
        used, passes = watch.counts.tolist()
        assert passes == len(model.tensors.layers)
        means.append(used / passes)
    # 64 (1 - (1 - 4 / 64)^16) = 41 are expected of uniform ones.
    assert means[0] < 12
    assert 34 <= means[1] <= 48
