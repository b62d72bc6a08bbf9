"""Formats as the libraries that write them do: what they compress is read as they expand it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.architectures import draw_model, tiny_sizes
from models.backends import stepwise_backend
from models.stored_formats import StoredFormat, fp8_blocks, save_as
from transformers import AutoModelForCausalLM, LlamaConfig

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.weights.formats.quantised_reader import QuantisedReader
from tokenbus.engine.weights.formats.schemes import scheme_of
from tokenbus.engine.weights.loader import load_model
from tokenbus.engine.weights.readers import LinearShape

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "layers.0.mlp.down_proj"
# By compressed-tensors' name of the scheme, the layout of files that have it.
_SCHEMES = {
    "FP8_DYNAMIC": "float-quantized",
    "FP8": "float-quantized",
    "FP8_BLOCK": "float-quantized",
    "W8A8": "int-quantized",
    "W8A16": "pack-quantized",
    "W4A16": "pack-quantized",
    "W4A16_ASYM": "pack-quantized",
}


@pytest.mark.parametrize("by_name", [False, True], ids=["spelt-out", "by-name"])
@pytest.mark.parametrize("scheme_name", _SCHEMES)
def test_compressed_tensors_are_read_as_the_library_expands_them(
    scheme_name: str, *, by_name: bool
) -> None:
    """Its own config and its own tensors give the numbers that it says they stand for."""
    library: Any = pytest.importorskip("compressed_tensors")
    schemes: Any = import_module("compressed_tensors.quantization.quant_scheme")
    compressors: Any = import_module("compressed_tensors.compressors")
    if by_name and scheme_name == "W8A16":
        with pytest.raises(ModelUnsupported, match="scheme W8A16 cannot be read"):
            scheme_of({"quant_method": "compressed-tensors", "config_groups": {"W8A16": []}})
        return
    layout = _SCHEMES[scheme_name]
    scheme = schemes.preset_name_to_scheme(scheme_name, ["Linear"])
    torch.manual_seed(7)
    values = torch.randn(136, 256)
    scales, zeros = _scales(values, scheme.weights)
    compressor: Any = compressors.BaseCompressor.get_value_from_registry(layout)
    state = {"weight": values, "weight_scale": scales, "weight_zero_point": zeros}
    stored = compressor.compress(state, scheme)
    expected = compressor.decompress(stored, scheme)["weight"]
    groups: dict[str, Any] = {"group_0": scheme}
    told = library.quantization.QuantizationConfig(config_groups=groups, format=layout).to_dict()
    if by_name:
        told["config_groups"] = {scheme_name: ["Linear"]}
    reader = QuantisedReader(scheme_of(told), ("model.",))
    shape = LinearShape(((_NAME, 136),), 256, torch.float32, torch.device("cpu"))
    reading = reader.open(shape)
    for last, tensor in stored.items():
        if tensor is not None:
            reading.parts[f"{_NAME}.{last}"].fill(last, tensor)
    assert reading.finish().dequantised().equal(expected.float())


def _scales(values: torch.Tensor, weights: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points of the shapes that a strategy has."""
    rows, columns = values.shape
    if weights.strategy == "tensor":
        parts = values.reshape(1, 1, -1)
    elif weights.strategy == "channel":
        parts = values.reshape(rows, 1, -1)
    elif weights.strategy == "group":
        parts = values.reshape(rows, columns // weights.group_size, -1)
    else:
        size = weights.block_structure[0]
        padded = torch.nn.functional.pad(values, (0, 0, 0, -rows % size))
        parts = padded.reshape(-(-rows // size), size, columns // size, size).transpose(1, 2)
        parts = parts.flatten(2)
    if weights.type == "float":
        scales = parts.abs().amax(-1) / 448
        return scales, torch.zeros_like(scales).to(torch.float8_e4m3fn)
    top = 2**weights.num_bits - 1
    if weights.symmetric:
        scales = parts.abs().amax(-1) * 2 / top
        return scales, torch.zeros_like(scales, dtype=torch.int8)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = (high - low) / top
    zeros = (-low / scales).round() - 2 ** (weights.num_bits - 1)
    return scales, zeros.clamp(-128, 127).to(torch.int8)


def test_float8_in_blocks_is_read_as_transformers_expands_it(tmp_path: Path) -> None:
    """Without a GPU transformers makes plain weights of them, which are the same numbers."""
    model = draw_model(LlamaConfig(**tiny_sizes(vocab_size=200, num_hidden_layers=1)))
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    stored = StoredFormat(
        config | {"weight_block_size": [32, 32]}, partial(fp8_blocks, rows=32, columns=32)
    )
    save_as(model, tmp_path, stored)
    factory: Any = AutoModelForCausalLM
    theirs = factory.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    ours: Any = load_model(tmp_path, stepwise_backend(), dtype="float32").model
    layer = ours.tensors.layers[0]
    for linear, name in ((layer.o, "self_attn.o_proj"), (layer.mlp.down, "mlp.down_proj")):
        expected = theirs[f"model.layers.0.{name}.weight"]
        assert expected.dtype is torch.float32
        assert linear.weight.dequantised().equal(expected)
