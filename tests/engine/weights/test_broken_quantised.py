"""Broken quantised checkpoints: no part of a format is left out, made up or read as another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.stored_checkpoint import (
    UP_PROJ,
    StoredCheckpoint,
    check_refused,
    open_model,
)
from models.stored_formats import StoredFormat, awq, fp8_rows, fp8_whole, gptq, packed, save_as

from tokenbus.engine.errors import EngineError, ModelBroken, ModelUnsupported
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


def _fp8_config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"} | more


def _compressed(**weights: Any) -> dict[str, Any]:
    told = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": told}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": groups,
    }


def _awq_config(**more: Any) -> dict[str, Any]:
    told = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return told | {"zero_point": True} | more


def _gptq_config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True} | more


_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes"),
    "mxfp4": ({"quant_method": "mxfp4"}, "quantised by mxfp4"),
    "nameless": ({"bits": 4}, "quantised by no method that it names"),
    "awq-gemv": (_awq_config(version="gemv"), "version gemv"),
    "awq-8": (_awq_config(bits=8), "4 bits alone"),
    "awq-symmetric": (_awq_config(zero_point=False), "zero_point False"),
    "awq-no-group": ({"quant_method": "awq", "bits": 4}, "quantization_config of awq"),
    "gptq-3": (_gptq_config(bits=3), "gptq weights of 3 bits"),
    "gptq-marlin": (_gptq_config(checkpoint_format="marlin"), "laid out for marlin"),
    "gptq-bitblas": (_gptq_config(format="bitblas"), "laid out for bitblas"),
    "gptq-dynamic": (_gptq_config(dynamic={"+:.*mlp": {"bits": 3}}), "gptq weights of 3 bits"),
    "gptq-dynamic-name": (_gptq_config(dynamic={"-:(": {}}), "quantization_config of gptq"),
    "fp8-e5m2": (_fp8_config(fmt="e5m2"), "fmt e5m2"),
    "modelopt-nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "algorithm NVFP4"),
    "ct-fp4": (_compressed(num_bits=4, group_size=16, strategy="tensor_group"), "of 4 bits"),
    "ct-groups": (_compressed(strategy="group", group_size=32), "strategy group"),
    "ct-marlin": (_compressed() | {"format": "marlin-24"}, "marlin-24 weights"),
    "ct-sparse": (_compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity"),
    "ct-rotated": (
        _compressed() | {"transform_config": {"config_groups": {"u": {}}}},
        "transforms",
    ),
    "ct-pattern": (_compressed() | {"ignore": ["re:("]}, r"the entry re:\("),
    "ct-number": (_compressed() | {"config_groups": {"g": 3}}, "quantization_config of compressed"),
    "ct-preset": (_compressed() | {"config_groups": {"NVFP4": ["Linear"]}}, "scheme NVFP4"),
}


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_quantisation_that_cannot_be_read_is_named(case: StoredCheckpoint, name: str) -> None:
    """Methods, versions and options without a reader are refused before any tensor is read."""
    config, reason = _CONFIGS[name]
    case.tell(quantization_config=config)
    check_refused(case.folder, ModelUnsupported, reason)


_SCALE, _ZERO = f"{UP_PROJ}.weight_scale", f"{UP_PROJ}.weight_zero_point"
_ROWS = StoredFormat(_compressed(), fp8_rows)
_WHOLE = StoredFormat(_fp8_config(), fp8_whole)
_PACKED = StoredFormat(
    _compressed(num_bits=4, type="int", strategy="group", group_size=32)
    | {"format": "pack-quantized"},
    packed,
)
_AWQ, _GPTQ = StoredFormat(_awq_config(), awq), StoredFormat(_gptq_config(), gptq)

# The sound checkpoint, what is changed of one tensor (None: it is lost), and what is said.
_CHANGES: dict[str, tuple[StoredFormat, str, Callable[[Tensor], Tensor | None], str]] = {
    "lost-scale": (_ROWS, _SCALE, lambda _: None, "up_proj.weight_scale"),
    "lost-whole-scale": (_WHOLE, _SCALE, lambda _: None, "0 tensors for the scale"),
    "infinite-scale": (_ROWS, _SCALE, lambda scale: scale / 0, "not finite"),
    "short-scale": (_ROWS, _SCALE, lambda scale: scale[1:], r"is \[95, 1\] in the checkpoint"),
    "scale-in-bytes": (_ROWS, _SCALE, lambda scale: scale.to(torch.int8), "stored as int8"),
    "float8-as-bytes": (
        _ROWS,
        f"{UP_PROJ}.weight",
        lambda values: values.view(torch.uint8),
        "stored as uint8 where float8_e4m3fn",
    ),
    "other-float8": (
        _ROWS,
        f"{UP_PROJ}.weight",
        lambda values: values.to(torch.float8_e5m2),
        "stored as float8_e5m2 where float8_e4m3fn",
    ),
    "plain-among-float8": (
        _ROWS,
        f"{UP_PROJ}.weight",
        lambda values: values.float(),
        "stored as float32 where float8_e4m3fn",
    ),
    "wrong-shape-told": (
        _PACKED,
        f"{UP_PROJ}.weight_shape",
        lambda shape: shape.flip(0).contiguous(),
        "says",
    ),
    "half-packed": (
        _PACKED,
        f"{UP_PROJ}.weight_packed",
        lambda words: words[:, 1:].contiguous(),
        "weight_packed is",
    ),
    "fewer-groups": (
        _PACKED,
        _SCALE,
        lambda scales: scales[:, :1].contiguous(),
        r"is \[96, 1\] in the checkpoint, the config asks for \[96, 2\]",
    ),
    "awq-transposed": (_AWQ, f"{UP_PROJ}.qweight", lambda w: w.T.contiguous(), "qweight is"),
    "awq-wide": (_AWQ, f"{UP_PROJ}.qweight", lambda w: w.long(), "stored as int64"),
    "awq-lost-zeros": (_AWQ, f"{UP_PROJ}.qzeros", lambda _: None, "up_proj.qzeros"),
    "gptq-uneven-groups": (
        _GPTQ,
        f"{UP_PROJ}.g_idx",
        torch.zeros_like,
        "does not give each group 32 inputs",
    ),
    "gptq-bias": (_GPTQ, f"{UP_PROJ}.bias", torch.ones_like, "is not zero"),
    "gptq-lost-order": (_GPTQ, f"{UP_PROJ}.g_idx", lambda _: None, "up_proj.g_idx"),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_a_quantised_checkpoint_is_whole_or_refused(name: str, model: Any, tmp_path: Path) -> None:
    """No part of a format is left out, made up or read as another one."""
    stored, tensor, change, reason = _CHANGES[name]
    save_as(model, tmp_path, stored)
    case = StoredCheckpoint(tmp_path).read()
    case.put(tensor, change(case.tensors[tensor]))
    check_refused(tmp_path, EngineError, reason)


def test_a_zero_point_of_symmetric_weights_is_zero(model: Any, tmp_path: Path) -> None:
    """A zero point beside weights that the config calls symmetric may come, but has to be zero."""
    save_as(model, tmp_path, _ROWS)
    case = StoredCheckpoint(tmp_path).read()
    case.put(_ZERO, torch.zeros(96, 1, dtype=torch.int8))
    open_model(tmp_path)
    case.put(_ZERO, torch.ones(96, 1, dtype=torch.int8))
    check_refused(tmp_path, ModelBroken, "weight_zero_point is not zero")


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_a_quantised_checkpoint_is_not_rounded_again(
    model: Any, tmp_path: Path, quantization: str
) -> None:
    """The setting is for plain weights."""
    save_as(model, tmp_path, _ROWS)
    check_refused(tmp_path, ModelUnsupported, "quantised already", quantization=quantization)


def test_plain_weights_are_rounded_to_float8_by_the_setting(case: StoredCheckpoint) -> None:
    """The head keeps its numbers, everything else becomes float8 as it is read."""
    llm = open_model(case.folder, quantization="fp8")
    answer = llm.generate(
        [[5, 6, 7]], SamplingParams(max_tokens=4, temperature=0.0), progress=False
    )
    assert len(answer[0].token_ids) == 4
