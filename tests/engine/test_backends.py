"""Backends and kinds of weight: chosen in one place, and open to what the packages do not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.backends import CPU, stepwise_backend
from models.made_up import (
    HalvedWeight,
    HalvingReader,
    NegatedProduct,
    NegatedWeight,
    NegatingReader,
    ScaledReader,
    ScaledWeight,
    made_up_backend,
)
from models.triton_model import triton_backend
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Starcoder2Config

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.backends import NativeBackend, TorchBackend, TritonBackend, choose_backend
from tokenbus.engine.bench.command import run_bench
from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelUnsupported, RequestRejected
from tokenbus.engine.models.linear_weight import Int4Weight, Int8Weight, PlainWeight
from tokenbus.engine.models.native.native_forms import NATIVE_KINDS, NativeForm, NativeKind
from tokenbus.engine.models.native_ops import NativeOps
from tokenbus.engine.models.triton_ops import TritonOps
from tokenbus.engine.models.triton_products import TRITON_PRODUCTS
from tokenbus.engine.native_library import native_library
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.engine.weights.readers import PlainReader
from tokenbus.engine.weights.rounding import round_to_int4, round_to_int8
from tokenbus.kernels.cpu.native import WeightFormat

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.ops import Ops
    from tokenbus.engine.weights.loader import LoadedModel
    from tokenbus.engine.weights.readers import WeightReader

NUM_TOKENS = 24
PROMPTS = ((5, 6, 7), tuple(range(40, 75)), (9,) * 17)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a tiny Llama whose vocabulary holds what benches draw from."""
    folder = tmp_path / "tiny"
    draw_model(LlamaConfig(**tiny_sizes(vocab_size=10_016, num_attention_heads=4))).save_pretrained(
        folder
    )
    return folder


def _config(model: Path, **settings: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_pages": 200}
    return EngineConfig(str(model), max_num_seqs=4, **(defaults | settings))


def _tokens(
    loaded: LoadedModel, config: EngineConfig, num_tokens: int = NUM_TOKENS
) -> list[list[int]]:
    engine = engine_for(loaded, config)
    assert engine.limits.page_size == loaded.backend.page_size
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    for idx, prompt in enumerate(PROMPTS):
        engine.add(Request(idx, prompt, params))
    answers: list[list[int]] = [[] for _ in PROMPTS]
    while engine.has_work:
        for delta in engine.step().deltas:
            answers[delta.request_id].extend(delta.token_ids)
        engine.check_integrity()
    engine.close()
    return answers


def _scale(model: Path) -> None:
    """Store every matrix of the layers as one that is twice as large and its factors."""
    tensors = load_file(model / "model.safetensors")
    for name in [name for name in tensors if "proj" in name]:
        tensors[name] = tensors[name] * 2
        factors = torch.full((tensors[name].shape[0], 1), 0.5)
        tensors[name.replace(".weight", ".factors")] = factors
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        pytest.param(PlainReader(), PlainWeight, id="plain", marks=pytest.mark.slow),
        pytest.param(NegatingReader(), NegatedWeight, id="negated", marks=pytest.mark.slow),
        pytest.param(HalvingReader(), HalvedWeight, id="halved", marks=pytest.mark.slow),
        pytest.param(ScaledReader(), ScaledWeight, id="scaled"),
    ],
)
def test_a_made_up_kind_of_weight_runs_on_a_made_up_backend(
    model: Path,
    tmp_path: Path,
    reader: WeightReader,
    kind: type[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Loader, ops, engine and bench take both as arguments; the tokens are those of the plain."""
    config = _config(model)
    expected = _tokens(load_for(config), config)
    assert len({token for answer in expected for token in answer}) > NUM_TOKENS
    if kind is ScaledWeight:
        _scale(model)
    backend = made_up_backend()
    loaded: Any = load_for(config, backend, reader)
    linears = loaded.model.tensors.linears()
    assert {type(linear.weight) for linear in linears[:-1]} == {kind}
    assert _tokens(loaded, config) == expected
    assert backend.attention.num_calls > 0
    arguments = ["--model", str(model), "--workload", "single", "--repeats", "1"]
    arguments += ["--dtype", "float32", "--max-num-seqs", "2", "--max-model-len", "1024"]
    assert run_bench([*arguments, "--json", str(tmp_path)], made_up_backend(), reader) == 0
    assert "pages of 8 tokens" in capsys.readouterr().out
    report = json.loads((tmp_path / "tiny-single.json").read_text())
    assert report["best"]["output_tokens"] == 512
    assert report["best"]["achieved"]["read_tb_s"] > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _OtherKinds(NativeBackend):
    """The CPU's kernels with a row more in their table."""

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:
        """Return the compiled layers, which turn the sign back as they pack."""
        assert NativeOps.supports(shape, dtype)
        turned = NativeKind(WeightFormat.PLAIN, lambda weight: NativeForm(-weight.values))
        return NativeOps(self.attention, {**NATIVE_KINDS, NegatedWeight: turned})


def test_a_made_up_kind_of_weight_runs_in_the_compiled_kernels(model: Path) -> None:
    """A row in the table of the CPU's kernels says what they pack of it."""
    library = native_library()
    if library is None:
        pytest.skip("there is no C++ compiler")
    config = _config(model)
    backend = _OtherKinds(device=CPU, attention=NativeAttention(library))
    loaded = load_for(config, backend, NegatingReader())
    assert _tokens(loaded, config) == _tokens(load_for(config), config)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OtherProducts(TritonBackend):
    """The GPU's kernels with a row more in their table."""

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:
        """Return the fused steps; layers of the made-up kind run step by step."""
        del shape, dtype
        return TritonOps(self.attention, {**TRITON_PRODUCTS, NegatedWeight: NegatedProduct})


@pytest.mark.slow
def test_a_made_up_kind_of_weight_runs_beside_the_kernels_of_a_gpu(model: Path) -> None:
    """A kind that can only multiply runs step by step, between the kernels for everything else."""
    plain = triton_backend(4)
    backend = _OtherProducts(
        device=plain.device,
        attention=plain.attention,
        captures_steps=plain.captures_steps,
        runs_ahead=plain.runs_ahead,
    )
    config = _config(model, prefix_grouping=False)
    loaded = load_for(config, backend, NegatingReader())
    assert _tokens(loaded, config, 2) == [
        answer[:2] for answer in _tokens(load_for(_config(model)), _config(model))
    ]


def test_a_kind_that_a_backend_does_not_know_is_refused_by_name(model: Path) -> None:
    """Whoever reads the message learns which kind came and which ones there are."""
    with pytest.raises(ModelUnsupported, match=r"NegatedWeight.*PlainWeight"):
        load_for(_config(model), stepwise_backend(), NegatingReader())


def test_a_device_gets_its_fastest_backend() -> None:
    """A CPU computes by compiled kernels in the dtypes they have, otherwise in torch."""
    half = choose_backend(EngineConfig("any", device="cpu", dtype="float16"))
    assert type(half) is TorchBackend
    assert half.sharing is None
    other = choose_backend(EngineConfig("any", device="meta"))
    assert type(other) is TorchBackend
    assert other.weights_dtype(torch.float16) is torch.float16
    if native_library() is None:
        pytest.skip("there is no C++ compiler")
    for dtype in ("auto", "float32", "bfloat16"):
        backend = choose_backend(EngineConfig("any", device="cpu", dtype=dtype))
        assert isinstance(backend, NativeBackend)
        assert backend.sharing is backend.attention
        assert (backend.page_size, backend.captures_steps, backend.runs_ahead) == (16, False, False)
        assert backend.kv_dtype(torch.bfloat16) is torch.bfloat16
        assert backend.weights_dtype(None) is torch.float32


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (made_up_backend(), "int8 weights need the compiled kernels"),
        (triton_backend(4), "int8 weights are for CPUs only"),
    ],
    ids=["torch", "triton"],
)
def test_a_setting_that_a_backend_cannot_carry_out_is_refused(
    backend: Backend, reason: str
) -> None:
    """The setting is named before a model is looked for."""
    with pytest.raises(RequestRejected, match=reason) as caught:
        load_for(EngineConfig("/nowhere", quantization="int8"), backend)
    assert caught.value.field == "quantization"


def test_transformers_code_takes_no_rounded_weights(tmp_path: Path) -> None:
    """A model that the decoder does not cover says that its code has no such weights."""
    if native_library() is None:
        pytest.skip("there is no C++ compiler")
    draw_model(Starcoder2Config(**tiny_sizes())).save_pretrained(tmp_path)
    with pytest.raises(ModelUnsupported, match="transformers' code, which has no int4"):
        load_for(EngineConfig(str(tmp_path), device="cpu", quantization="int4"))


@pytest.mark.parametrize("num_inputs", [32, 50, 96])
def test_rounded_weights_know_their_sizes_and_stand_for_their_numbers(num_inputs: int) -> None:
    """Bytes and groups of 4 bits stay within half a step of what was rounded."""
    torch.manual_seed(0)
    plain = torch.randn(5, num_inputs).bfloat16()
    eight, four = round_to_int8(plain), round_to_int4(plain)
    num_groups = -(-num_inputs // 32)
    assert isinstance(eight, Int8Weight)
    assert isinstance(four, Int4Weight)
    assert eight.shape == four.shape == plain.shape
    assert eight.dtype is four.dtype is torch.bfloat16
    assert eight.nbytes == 5 * num_inputs + 5 * 4
    assert four.nbytes == 5 * num_inputs // 2 + 5 * num_groups * 2 * 2
    error = (eight.values * eight.scales[:, None] - plain).abs()
    assert (error <= 0.501 * eight.scales[:, None]).all()
    steps = torch.stack((four.steps & 15, four.steps >> 4), -1).view(5, num_inputs)
    scales, lows = (
        part.float().repeat_interleave(32, 1)[:, :num_inputs] for part in (four.scales, four.lows)
    )
    # The scale and the low are rounded to bfloat16 themselves.
    assert ((steps * scales + lows - plain).abs() <= 0.6 * scales + 0.01).all()
