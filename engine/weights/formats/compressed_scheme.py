"""The scheme of compressed-tensors: groups of modules, each with formats of weights and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import regex

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.weights.formats.fp8_parts import Fp8BlockFormat, Fp8Format, Int8Format
from tokenbus.engine.weights.formats.module_names import compiled, is_named
from tokenbus.engine.weights.formats.packed_parts import PackedFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.weights.formats.quantised_part import PartFormat

_LINEAR = "Linear"
_WHOLE = ("channel", "tensor")
_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
# Groups that are written by name alone. W8A16 is not among them: versions of the library differ on
# whether it has groups.
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "W8A8": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "INT8": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "W4A16": _INT4,
    "W4A16_ASYM": _INT4 | {"symmetric": False},
    "FP8": _FP8 | {"strategy": "tensor"},
    "FP8_DYNAMIC": _FP8 | {"strategy": "channel"},
    "FP8_BLOCK": _FP8 | {"strategy": "block", "block_structure": [128, 128]},
}


@dataclass(frozen=True, slots=True)
class _Group:
    """One group: the modules it is for, and how their weights are stored."""

    targets: tuple[str, ...]
    format: PartFormat | None


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """Groups by name, regular expression or class; modules on the list `ignore` are plain."""

    groups: tuple[_Group, ...]
    ignore: tuple[str, ...]
    name: str = "compressed-tensors"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CompressedScheme:
        """Read a `quantization_config`.

        Raises: ModelUnsupported for a format or setting that is not known.
        """
        if config.get("transform_config"):
            raise ModelUnsupported("compressed-tensors with transforms of weights cannot be read")
        sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise ModelUnsupported(f"compressed-tensors of sparsity {sparsity} cannot be read")
        groups = []
        for name, told in config["config_groups"].items():
            if isinstance(told, list):
                weights = _preset(name)
                targets = tuple(map(str, told))
                groups.append(_Group(targets, _format(weights, config.get("format"))))
                continue
            found = _format(told.get("weights"), told.get("format") or config.get("format"))
            groups.append(_Group(tuple(map(str, told["targets"])), found))
        ignore = tuple(map(str, config.get("ignore") or ()))
        for entry in (*ignore, *(target for group in groups for target in group.targets)):
            _refuse_pattern(entry)
        return cls(tuple(groups), ignore)

    def format_of(self, names: Sequence[str], *, is_head: bool) -> PartFormat | None:
        """Return the format of the group that names the module most exactly."""
        del is_head
        if any(is_named(names, entry) or entry == _LINEAR for entry in self.ignore):
            return None
        targets = {target: group for group in self.groups for target in group.targets}
        # Names before expressions, and both before the class of all linears.
        for target in sorted(targets, key=lambda entry: (entry.startswith("re:"), entry)):
            if is_named(names, target):
                return targets[target].format
        return targets[_LINEAR].format if _LINEAR in targets else None


def _refuse_pattern(entry: str) -> None:
    """Refuse an entry that is no regular expression though it is written as one."""
    try:
        compiled(entry.removeprefix("re:") if entry.startswith("re:") else "")
    except regex.error as error:
        raise ModelUnsupported(f"compressed-tensors with the entry {entry}: {error}") from error


def _preset(name: str) -> Mapping[str, Any]:
    if name.upper() not in _PRESETS:
        raise ModelUnsupported(
            f"compressed-tensors weights of scheme {name} cannot be read; {', '.join(_PRESETS)} can"
        )
    return _PRESETS[name.upper()]


def _format(weights: Mapping[str, Any] | None, layout: Any) -> PartFormat | None:
    """Return how weights are stored; None where a group rounds activations alone."""
    if weights is None:
        return None
    bits, kind = int(weights.get("num_bits", 8)), str(weights.get("type", "int"))
    strategy = str(weights.get("strategy") or ("group" if weights.get("group_size") else "tensor"))
    symmetric, group = bool(weights.get("symmetric", True)), weights.get("group_size")
    told = f"{layout} weights of {bits} bits, type {kind}, strategy {strategy}"
    refused = ModelUnsupported(f"compressed-tensors {told} cannot be read")
    if weights.get("dynamic"):
        raise refused
    # Whole rows are written as groups of -1, too.
    group_inputs = _positive(group) if strategy == "group" else None
    if strategy not in (*_WHOLE, "group", "block"):
        raise refused
    if kind == "float":
        if bits != 8 or layout not in ("float-quantized", "naive-quantized") or not symmetric:
            raise refused
        return _float_format(weights, strategy, refused)
    if kind != "int" or strategy == "block":
        raise refused
    if layout == "pack-quantized" and bits in (4, 8):
        # True is what older files say for `group`.
        order = weights.get("actorder")
        has_order = order in ("group", "dynamic", True)
        if not has_order and order not in (None, False, "weight", "static"):
            raise ModelUnsupported(f"compressed-tensors with actorder {order} cannot be read")
        return PackedFormat(bits, group_inputs, not symmetric, has_order)
    if layout in ("int-quantized", "naive-quantized") and bits == 8:
        return Int8Format(group_inputs, not symmetric)
    raise refused


def _positive(group: Any) -> int | None:
    return int(group) if int(group) > 0 else None


def _float_format(
    weights: Mapping[str, Any], strategy: str, refused: ModelUnsupported
) -> PartFormat:
    if strategy in _WHOLE:
        return Fp8Format()
    if strategy == "block" and weights.get("block_structure"):
        structure = weights["block_structure"]
        if isinstance(structure, str):
            structure = structure.lower().split("x")
        outputs, inputs = (int(size) for size in structure)
        return Fp8BlockFormat(outputs, inputs, "weight_scale")
    raise refused
