"""Quantised checkpoints as published ones are stored, made of plain weights; a second account.

Each maker takes a name and a matrix [out, in] float32 and returns the tensors that a checkpoint in
its format has, and the numbers that these stand for, [out, in] float32. They are written from the
descriptions of the formats, number by number, and share no code with the readers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

Stored = tuple[dict[str, "Tensor"], "Tensor"]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """A format: what config.json says, how a linear is stored, and which linears are left out.

    layer: of linears whose name ends with one of `others`' keys another maker is used.
    """

    config: dict[str, Any]
    make: Callable[[str, Tensor], Stored]
    left_out: tuple[str, ...] = ("lm_head",)
    others: dict[str, Callable[[str, Tensor], Stored]] = field(default_factory=dict)
    modelopt_file: dict[str, Any] | None = None


def save_as(model: Any, folder: Path, stored: StoredFormat) -> dict[str, Tensor]:
    """Save a model of transformers in a format; return its tensors as the numbers they became."""
    model.save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        linear = name.removesuffix(".weight")
        is_linear = value.ndim == 2 and "embed" not in name
        if not is_linear or any(part in linear for part in stored.left_out):
            tensors[name] = numbers[name] = value.contiguous()
            continue
        make = next((m for end, m in stored.others.items() if linear.endswith(end)), stored.make)
        made, numbers[name] = make(linear, value)
        tensors |= made
    save_file({name: value.contiguous() for name, value in tensors.items()}, _weights(folder))
    config = json.loads((folder / "config.json").read_text())
    if stored.config:
        config["quantization_config"] = stored.config
    (folder / "config.json").write_text(json.dumps(config))
    if stored.modelopt_file is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(stored.modelopt_file))
    return numbers


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def fp8_rows(name: str, values: Tensor, *, scale_dtype: torch.dtype = torch.bfloat16) -> Stored:
    """One scale per output, [out, 1]."""
    scale = (values.abs().amax(1, keepdim=True) / 448).to(scale_dtype)
    rounded = (values / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    tensors = {f"{name}.weight": rounded, f"{name}.weight_scale": scale}
    return tensors, rounded.float() * scale.float()


def fp8_whole(
    name: str, values: Tensor, *, scale_name: str = "weight_scale", input_name: str = "input_scale"
) -> Stored:
    """One scale for the matrix and a static one for the activations."""
    scale = values.abs().amax() / 448
    rounded = (values / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    tensors = {f"{name}.weight": rounded, f"{name}.{scale_name}": scale}
    tensors[f"{name}.{input_name}"] = torch.tensor(0.25)
    return tensors, rounded.float() * scale


def fp8_blocks(
    name: str, values: Tensor, *, rows: int, columns: int, scale_name: str = "weight_scale_inv"
) -> Stored:
    """A scale for each block of outputs and inputs, the last ones cut off."""
    num_rows, num_columns = -(-values.shape[0] // rows), -(-values.shape[1] // columns)
    scales, numbers = torch.empty(num_rows, num_columns), torch.empty_like(values)
    rounded = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
    for i in range(num_rows):
        for j in range(num_columns):
            place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scales[i, j] = values[place].abs().max() / 448
            rounded[place] = (values[place] / scales[i, j]).clamp(-448, 448).to(rounded.dtype)
            numbers[place] = rounded[place].float() * scales[i, j]
    return {f"{name}.weight": rounded, f"{name}.{scale_name}": scales}, numbers


def int8_rows(name: str, values: Tensor) -> Stored:
    """Int8 with a scale per output."""
    scale = (values.abs().amax(1, keepdim=True) / 127).bfloat16()
    rounded = (values / scale.float()).round().clamp(-128, 127).to(torch.int8)
    tensors = {f"{name}.weight": rounded, f"{name}.weight_scale": scale}
    return tensors, rounded.float() * scale.float()


@dataclass(slots=True)
class _Steps:
    """Whole numbers of a matrix: steps, zeros [out, groups], scales; numbers they stand for."""

    steps: np.ndarray[Any, Any]
    zeros: np.ndarray[Any, Any]
    scales: Tensor
    numbers: Tensor


def _steps_of(
    values: Tensor, groups: np.ndarray[Any, Any], bits: int, dtype: torch.dtype, *, symmetric: bool
) -> _Steps:
    """Round a matrix whose input i is in group groups[i]."""
    num_groups, top = int(groups.max()) + 1, 2**bits - 1
    steps = np.zeros(values.shape, dtype=np.int64)
    zeros = np.zeros((values.shape[0], num_groups), dtype=np.int64)
    scales = torch.empty(values.shape[0], num_groups, dtype=dtype)
    numbers = torch.empty_like(values)
    for group in range(num_groups):
        columns = np.flatnonzero(groups == group)
        part = values[:, columns]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if symmetric:
            scale = (part.abs().amax(1) * 2 / top).to(dtype)
            zero = torch.full_like(low, 2 ** (bits - 1))
        else:
            scale = ((high - low) / top).to(dtype)
            # The first version of GPTQ cannot store a zero point of 0.
            zero = (-low / scale.float()).round().clamp(1, top)
        whole = (part / scale.float()[:, None] + zero[:, None]).round().clamp(0, top)
        steps[:, columns] = whole.long().numpy()
        zeros[:, group] = zero.long().numpy()
        scales[:, group] = scale
        numbers[:, columns] = (whole - zero[:, None]) * scale.float()[:, None]
    return _Steps(steps, zeros, scales, numbers)


def _words(steps: np.ndarray[Any, Any], bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Put the numbers of each row into words of 32 bits; a word's i-th is its order[i]-th."""
    count = 32 // bits
    padding = -steps.shape[1] % count
    padded = np.pad(steps, ((0, 0), (0, padding)))
    words = np.zeros((padded.shape[0], padded.shape[1] // count), dtype=np.uint32)
    for i in range(count):
        column = i if order is None else order[i]
        words |= padded[:, column::count].astype(np.uint32) << np.uint32(i * bits)
    return torch.from_numpy(words.view(np.int32).copy())


def packed(
    name: str,
    values: Tensor,
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    has_order: bool = False,
) -> Stored:
    """compressed-tensors' packed integers; with an order, inputs in groups that are shuffled."""
    groups = _groups(values.shape[1], group, has_order=has_order)
    made = _steps_of(values, groups, bits, torch.bfloat16, symmetric=symmetric)
    tensors = {
        f"{name}.weight_packed": _words(made.steps, bits),
        f"{name}.weight_scale": made.scales,
        f"{name}.weight_shape": torch.tensor(values.shape),
    }
    if not symmetric:
        tensors[f"{name}.weight_zero_point"] = _words(made.zeros.T, bits).T
    if has_order:
        tensors[f"{name}.weight_g_idx"] = torch.from_numpy(groups).int()
    return tensors, made.numbers


def awq(name: str, values: Tensor, *, group: int = 32) -> Stored:
    """AutoAWQ's gemm: inputs by rows, outputs packed in an order of their own."""
    groups = _groups(values.shape[1], group, has_order=False)
    made = _steps_of(values, groups, 4, torch.float16, symmetric=False)
    return {
        f"{name}.qweight": _words(made.steps.T, 4, _AWQ_ORDER),
        f"{name}.qzeros": _words(made.zeros.T, 4, _AWQ_ORDER),
        f"{name}.scales": made.scales.T,
    }, made.numbers


def gptq(
    name: str,
    values: Tensor,
    *,
    bits: int = 4,
    group: int = 32,
    version: int = 1,
    symmetric: bool = False,
    has_order: bool = False,
) -> Stored:
    """GPTQ: inputs packed by columns of words, zero points less one in version 1."""
    groups = _groups(values.shape[1], group, has_order=has_order)
    made = _steps_of(values, groups, bits, torch.float16, symmetric=symmetric)
    return {
        f"{name}.qweight": _words(made.steps, bits).T,
        f"{name}.qzeros": _words(made.zeros.T - (version == 1), bits),
        f"{name}.scales": made.scales.T,
        f"{name}.g_idx": torch.from_numpy(groups).int(),
        # Some tools write one for every linear.
        f"{name}.bias": torch.zeros(values.shape[0], dtype=torch.float16),
    }, made.numbers


def _groups(num_inputs: int, group: int, *, has_order: bool) -> np.ndarray[Any, Any]:
    groups = np.arange(num_inputs) // (num_inputs if group == -1 else group)
    if has_order:
        # One order for all linears of a size: q, k and v have the same inputs.
        np.random.default_rng(num_inputs).shuffle(groups)
    return groups
