"""Formats of quantised checkpoints: every number read as it is meant, and the tokens of that."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.backends import CPU, StepwiseBackend, stepwise_backend
from models.greedy_driver import GreedyDriver, Reference, draw_prompts
from models.stored_formats import (
    StoredFormat,
    awq,
    fp8_blocks,
    fp8_rows,
    fp8_whole,
    gptq,
    int8_rows,
    packed,
    save_as,
)
from safetensors.torch import save_file
from transformers import LlamaConfig, Qwen2Config

from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.linear_weight import (
    Fp8BlockWeight,
    Fp8Weight,
    Int4GroupWeight,
    Int8GroupWeight,
    Int8Weight,
    PlainWeight,
)
from tokenbus.engine.models.ops import TORCH_PRODUCTS, TorchOps
from tokenbus.engine.models.product import ProductTable, TorchProduct
from tokenbus.engine.parallel.collective import Alone
from tokenbus.engine.parallel.group import RankGroup
from tokenbus.engine.weights.loader import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.engine.models.decoder_config import DecoderConfig

_NUM_TOKENS = 8
_FUSED = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


def _compressed(layout: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    told = {"quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"]}
    return told | {"config_groups": {"group_0": group}, "quantization_status": "compressed"} | more


def _integers(bits: int, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group"} | more


def _float8(**more: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False} | more


def _gptq(**more: Any) -> dict[str, Any]:
    told = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
    return told | more


_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
_MIXED = {
    "config_groups": {
        "a": {"targets": ["Linear"], "weights": _float8(strategy="channel")},
        "b": {
            "targets": ["re:.*down_proj$"],
            "weights": _integers(4, group_size=32),
            "format": "pack-quantized",
        },
    }
}

# By the name of the format: the checkpoint, and the kind of weight that most linears become.
_FORMATS: dict[str, tuple[StoredFormat, type[Any]]] = {
    "ct-fp8-dynamic": (
        StoredFormat(_compressed("float-quantized", _float8(strategy="channel")), fp8_rows),
        Fp8Weight,
    ),
    "ct-fp8-static": (
        StoredFormat(_compressed("float-quantized", _float8(strategy="tensor")), fp8_whole),
        Fp8Weight,
    ),
    "ct-fp8-block": (
        StoredFormat(
            _compressed("float-quantized", _float8(strategy="block", block_structure=[16, 40])),
            partial(fp8_blocks, rows=16, columns=40, scale_name="weight_scale"),
        ),
        Fp8BlockWeight,
    ),
    "ct-preset": (
        StoredFormat(
            _compressed("float-quantized", {}, config_groups={"FP8_DYNAMIC": ["Linear"]}),
            partial(fp8_rows, scale_dtype=torch.float32),
        ),
        Fp8Weight,
    ),
    "ct-int8": (
        StoredFormat(_compressed("int-quantized", _integers(8, strategy="channel")), int8_rows),
        Int8Weight,
    ),
    "ct-w4a16": (
        StoredFormat(_compressed("pack-quantized", _integers(4, group_size=32)), packed),
        Int4GroupWeight,
    ),
    "ct-w4a16-asymmetric": (
        StoredFormat(
            _compressed("pack-quantized", _integers(4, group_size=16, symmetric=False)),
            partial(packed, group=16, symmetric=False),
        ),
        Int4GroupWeight,
    ),
    "ct-w4a16-ordered": (
        StoredFormat(
            _compressed("pack-quantized", _integers(4, group_size=32, actorder="group")),
            partial(packed, has_order=True),
        ),
        Int4GroupWeight,
    ),
    "ct-w4a16-static-order": (
        StoredFormat(
            _compressed("pack-quantized", _integers(4, group_size=32, actorder="static")), packed
        ),
        Int4GroupWeight,
    ),
    "ct-w8a16": (
        StoredFormat(
            _compressed("pack-quantized", _integers(8, strategy="channel")),
            partial(packed, bits=8, group=-1),
        ),
        Int8Weight,
    ),
    "ct-w8a16-groups": (
        StoredFormat(
            _compressed("pack-quantized", _integers(8, group_size=32, symmetric=False)),
            partial(packed, bits=8, symmetric=False),
        ),
        Int8GroupWeight,
    ),
    "ct-mixed": (
        StoredFormat(
            _compressed("float-quantized", {}, **_MIXED), fp8_rows, others={"down_proj": packed}
        ),
        Fp8Weight,
    ),
    "ct-ignore": (
        StoredFormat(
            _compressed(
                "float-quantized",
                _float8(strategy="channel"),
                ignore=["lm_head", "re:.*layers\\.[01]\\.mlp.*", "model.layers.2.self_attn.k_proj"],
            ),
            fp8_rows,
            left_out=("lm_head", "layers.0.mlp", "layers.1.mlp", "layers.2.self_attn.k_proj"),
        ),
        Fp8Weight,
    ),
    "ct-head": (
        StoredFormat(
            _compressed("float-quantized", _float8(strategy="channel"), ignore=[]),
            fp8_rows,
            left_out=(),
        ),
        Fp8Weight,
    ),
    "fp8-block": (
        StoredFormat(
            _BLOCKS | {"weight_block_size": [128, 128]}, partial(fp8_blocks, rows=128, columns=128)
        ),
        Fp8BlockWeight,
    ),
    "fp8-block-cut-off": (
        StoredFormat(
            _BLOCKS | {"weight_block_size": [24, 40], "modules_to_not_convert": ["mlp.gate"]},
            partial(fp8_blocks, rows=24, columns=40),
        ),
        Fp8BlockWeight,
    ),
    "fp8-whole": (
        StoredFormat(
            _BLOCKS | {"activation_scheme": "static", "ignored_layers": ["model.layers.2.mlp"]},
            fp8_whole,
            left_out=("lm_head", "layers.2.mlp"),
        ),
        Fp8Weight,
    ),
    "fbgemm": (
        StoredFormat(
            {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
            | {"modules_to_not_convert": ["model.layers.0.self_attn.q_proj", "lm_head"]},
            fp8_rows,
            left_out=("lm_head", "layers.0.self_attn.q_proj"),
        ),
        Fp8Weight,
    ),
    "fp8-whole-by-transformers": (
        StoredFormat(
            _BLOCKS | {"activation_scheme": "static", "weight_block_size": None},
            partial(fp8_whole, scale_name="weight_scale_inv", input_name="activation_scale"),
        ),
        Fp8Weight,
    ),
    "modelopt": (
        StoredFormat(
            {},
            fp8_whole,
            left_out=("lm_head", "layers.0."),
            modelopt_file={
                "producer": {"name": "modelopt"},
                "quantization": {
                    "quant_algo": "FP8",
                    "exclude_modules": ["lm_head", "model.layers.0*"],
                },
            },
        ),
        Fp8Weight,
    ),
    "awq": (StoredFormat(_AWQ, awq), Int4GroupWeight),
    "awq-whole-rows": (
        StoredFormat(_AWQ | {"group_size": -1}, partial(awq, group=-1)),
        Int4GroupWeight,
    ),
    "awq-left-out": (
        StoredFormat(
            _AWQ | {"modules_to_not_convert": ["self_attn.v_proj", "model.layers.1"]},
            awq,
            left_out=("lm_head", "v_proj", "layers.1."),
        ),
        Int4GroupWeight,
    ),
    "gptq": (StoredFormat(_gptq(), gptq), Int4GroupWeight),
    "gptq-symmetric": (
        StoredFormat(_gptq(sym=True, group_size=-1), partial(gptq, symmetric=True, group=-1)),
        Int4GroupWeight,
    ),
    "gptq-ordered": (
        StoredFormat(_gptq(desc_act=True), partial(gptq, has_order=True)),
        Int4GroupWeight,
    ),
    "gptq-v2": (
        StoredFormat(_gptq(checkpoint_format="gptq_v2"), partial(gptq, version=2)),
        Int4GroupWeight,
    ),
    "gptq-dynamic": (
        StoredFormat(
            _gptq(
                dynamic={
                    "-:.*layers\\.1\\.mlp": {},
                    "+:.*\\.down_proj": {"bits": 8, "group_size": -1},
                    ".*mlp": {"desc_act": True},
                }
            ),
            gptq,
            left_out=("lm_head", "layers.1.mlp"),
            others={
                "down_proj": partial(gptq, bits=8, group=-1),
                "gate_proj": partial(gptq, has_order=True),
                "up_proj": partial(gptq, has_order=True),
            },
        ),
        Int4GroupWeight,
    ),
    "gptq-8": (StoredFormat(_gptq(bits=8), partial(gptq, bits=8)), Int8GroupWeight),
    "gptq-8-ordered-head": (
        StoredFormat(
            _gptq(bits=8, desc_act=True, lm_head=True),
            partial(gptq, bits=8, has_order=True),
            left_out=(),
        ),
        Int8GroupWeight,
    ),
}


def test_biases_of_quantised_linears_stay_plain(tmp_path: Path) -> None:
    """A family with biases of q, k and v has them beside packed weights."""
    sizes = tiny_sizes(vocab_size=200, num_hidden_layers=1)
    biased = draw_model(Qwen2Config(**sizes))
    numbers = save_as(biased, tmp_path, _FORMATS["awq"][0])
    loaded: Any = load_model(tmp_path, stepwise_backend(), dtype="float32").model
    expected = [numbers[f"model.layers.0.self_attn.{part}_proj.bias"] for part in "qkv"]
    qkv = loaded.tensors.layers[0].qkv
    assert isinstance(qkv.weight, Int4GroupWeight)
    assert qkv.bias.equal(torch.cat(expected))
    reference = copy.deepcopy(biased)
    reference.load_state_dict(numbers)
    texts = draw_prompts(199, [3, 20])
    expected_tokens = Reference(reference).generate(texts, _NUM_TOKENS)
    assert GreedyDriver(loaded).generate(texts, _NUM_TOKENS) == expected_tokens


def test_a_calibrated_kv_cache_leaves_weights_plain(model: Any, tmp_path: Path) -> None:
    """ModelOpt's file may speak of the KV cache alone; its scales are not needed."""
    told = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    everything = StoredFormat({}, fp8_rows, left_out=("",), modelopt_file=told)
    numbers = save_as(model, tmp_path, everything)
    attention = "model.layers.0.self_attn"
    scales = {
        f"{attention}.{last}": torch.ones(1)
        for last in ("k_proj.k_scale", "qkv_proj.v_scale", "v_scale", "k_zero_point")
    }
    save_file(numbers | scales, tmp_path / "model.safetensors")
    loaded: Any = load_model(tmp_path, stepwise_backend(), dtype="float32").model
    assert {type(linear.weight) for linear in loaded.tensors.linears()} == {PlainWeight}


@dataclass(frozen=True, slots=True, kw_only=True)
class _CarelessBackend(StepwiseBackend):
    """A device whose product of float8 forgets the scales."""

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> TorchOps:
        """Return steps that multiply by the values alone."""
        del shape
        careless: ProductTable = {
            **TORCH_PRODUCTS,
            Fp8Weight: lambda weight, bias: TorchProduct(weight.values.to(dtype), bias),
        }
        return TorchOps(self.attention, careless)


def test_a_device_that_multiplies_wrongly_is_found_out(model: Any, tmp_path: Path) -> None:
    """A few products are compared with the numbers of the checkpoint before a token is made."""
    save_as(model, tmp_path, _FORMATS["ct-fp8-dynamic"][0])
    backend = _CarelessBackend(device=CPU, attention=TorchAttention())
    with pytest.raises(ModelUnsupported, match=r"Fp8Weight weights .* not multiplied rightly"):
        load_model(tmp_path, backend, dtype="float32")


@pytest.mark.parametrize("name", ["ct-fp8-dynamic", "fp8-block", "ct-mixed", "ct-w8a16", "awq"])
def test_random_weights_are_of_the_kinds_of_the_config(
    name: str, model: Any, tmp_path: Path
) -> None:
    """A benchmark without weights multiplies by what the checkpoint would give."""
    stored, kind = _FORMATS[name]
    save_as(model, tmp_path, stored)
    (tmp_path / "model.safetensors").unlink()
    drawn: Any = load_model(tmp_path, stepwise_backend(), dtype="float32", random_weights=True)
    linears = drawn.model.tensors.linears()
    assert kind in {type(linear.weight) for linear in linears}
    for linear in linears:
        values = linear.weight.dequantised()
        assert float(values.std()) == pytest.approx(0.35, rel=0.2)


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a tiny Llama with an even vocabulary."""
    return draw_model(LlamaConfig(**tiny_sizes(vocab_size=200, num_hidden_layers=3)))


# Formats whose groups end where no part of two ranks does, and what refuses them.
_UNCUT = {
    "ct-fp8-block": "is not made of groups of 40",
    "fp8-block": "is not made of groups of 128",
    "fp8-block-cut-off": "is not made of groups of 24",
    "ct-w4a16-ordered": "orders the inputs by groups",
    "gptq-ordered": "orders the inputs by groups",
    "gptq-8-ordered-head": "orders the inputs by groups",
}


# One with a scale per output, one packed along outputs, one that is refused.
_CUT_SOON = ("ct-fp8-dynamic", "awq", "fp8-block")


@dataclass(slots=True)
class _Place(Alone):
    """A place among ranks that compute nothing together."""

    rank: int
    size: int


@pytest.mark.parametrize(
    "name",
    [
        name if name in _CUT_SOON else pytest.param(name, marks=pytest.mark.slow)
        for name in _FORMATS
    ],
)
def test_ranks_read_their_parts_number_by_number(name: str, tmp_path: Path) -> None:
    """Each of two ranks has its outputs or inputs of every matrix, or is refused by its name."""
    stored, kind = _FORMATS[name]
    sizes = tiny_sizes(vocab_size=200, num_hidden_layers=3, hidden_size=128, intermediate_size=128)
    numbers = save_as(draw_model(LlamaConfig(**sizes)), tmp_path, stored)
    for rank in (0, 1):
        group = RankGroup()
        group.collective = _Place(rank, 2)
        backend = replace(stepwise_backend(), group=group)
        if name in _UNCUT:
            with pytest.raises(ModelUnsupported, match=f"_proj.*{_UNCUT[name]}"):
                load_model(tmp_path, backend, dtype="float32")
            continue
        loaded: Any = load_model(tmp_path, backend, dtype="float32").model
        for idx, layer in enumerate(loaded.tensors.layers):
            prefix = f"model.layers.{idx}"
            outputs = [numbers[f"{prefix}.self_attn.{part}.weight"] for part in _FUSED["qkv"]]
            expected = torch.cat([values.chunk(2)[rank] for values in outputs])
            assert layer.qkv.weight.dequantised().equal(expected)
            outputs = [numbers[f"{prefix}.mlp.{part}.weight"] for part in _FUSED["gate_up"]]
            expected = torch.cat([values.chunk(2)[rank] for values in outputs])
            assert layer.mlp.gate_up.weight.dequantised().equal(expected)
            for linear, last in ((layer.o, "self_attn.o_proj"), (layer.mlp.down, "mlp.down_proj")):
                inputs = numbers[f"{prefix}.{last}.weight"].chunk(2, 1)
                assert linear.weight.dequantised().equal(inputs[rank])
        head = loaded.tensors.lm_head.weight.dequantised()
        assert head.equal(numbers["lm_head.weight"].chunk(2)[rank])
        assert kind in {type(linear.weight) for linear in loaded.tensors.linears()}


@pytest.mark.parametrize("name", _FORMATS)
def test_a_format_is_read_number_by_number(name: str, model: Any, tmp_path: Path) -> None:
    """Linears stand for the numbers of the checkpoint; tokens are those of these numbers."""
    stored, kind = _FORMATS[name]
    numbers = save_as(model, tmp_path, stored)
    loaded: Any = load_model(tmp_path, stepwise_backend(), dtype="float32").model
    tensors = loaded.tensors
    for idx, layer in enumerate(tensors.layers):
        prefix = f"model.layers.{idx}"
        expected = {
            "qkv": [numbers[f"{prefix}.self_attn.{part}.weight"] for part in _FUSED["qkv"]],
            "o": [numbers[f"{prefix}.self_attn.o_proj.weight"]],
            "gate_up": [numbers[f"{prefix}.mlp.{part}.weight"] for part in _FUSED["gate_up"]],
            "down": [numbers[f"{prefix}.mlp.down_proj.weight"]],
        }
        for field, parts in expected.items():
            part = layer.mlp if field in {"gate_up", "down"} else layer
            found = getattr(part, field).weight.dequantised()
            assert found.equal(torch.cat(parts)), (prefix, field)
    assert tensors.lm_head.weight.dequantised().equal(numbers["lm_head.weight"])
    kinds = [type(linear.weight) for linear in tensors.linears()]
    assert kinds.count(kind) >= len(kinds) // 2
    assert (kinds[-1] is PlainWeight) == ("lm_head" in stored.left_out)
    reference = copy.deepcopy(model)
    reference.load_state_dict(numbers)
    texts = draw_prompts(199, [3, 20])
    expected_tokens = Reference(reference).generate(texts, _NUM_TOKENS)
    assert GreedyDriver(loaded).generate(texts, _NUM_TOKENS) == expected_tokens
    assert len({token for tokens in expected_tokens for token in tokens}) > _NUM_TOKENS // 2
