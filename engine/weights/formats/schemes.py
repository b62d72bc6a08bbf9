"""Schemes: what the quantisation configs of published checkpoints say, read strictly.

A setting that is not known here may change what the numbers mean, so that formats, versions and
options without a reader are refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import regex

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.model_folder import broken_if
from tokenbus.engine.weights.formats.compressed_scheme import CompressedScheme
from tokenbus.engine.weights.formats.fp8_parts import Fp8BlockFormat, Fp8Format
from tokenbus.engine.weights.formats.module_names import compiled, is_excluded, is_listed, starts
from tokenbus.engine.weights.formats.packed_parts import AwqFormat, GptqFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tokenbus.engine.weights.formats.quantised_part import PartFormat
    from tokenbus.engine.weights.formats.quantised_reader import Scheme


_MODELOPT_FILE = "hf_quant_config.json"


@dataclass(frozen=True, slots=True)
class ListScheme:
    """One format for all modules but those on a list; the head is plain unless `reads_head`.

    rules: expressions for the start of a name, each with the format of what it matches, None for
    plain numbers; the first that matches counts.
    """

    name: str
    format: PartFormat
    left_out: tuple[str, ...]
    reads_head: bool = False
    rules: tuple[tuple[regex.Pattern[str], PartFormat | None], ...] = ()

    def format_of(self, names: Sequence[str], *, is_head: bool) -> PartFormat | None:
        """Return the format, None for what was left out."""
        if (is_head and not self.reads_head) or is_listed(names, self.left_out):
            return None
        for pattern, found in self.rules:
            if any(starts(pattern, name) for name in names):
                return found
        return self.format


@dataclass(frozen=True, slots=True)
class ModelOptScheme:
    """One format, None for plain numbers, for all modules but those that wildcards name."""

    name: str
    format: PartFormat | None
    left_out: tuple[str, ...]

    def format_of(self, names: Sequence[str], *, is_head: bool) -> PartFormat | None:
        """Return the format, None for what was left out."""
        del is_head
        return None if is_excluded(names, self.left_out) else self.format


def quantization_config(config: Any, folder: Path | None) -> Mapping[str, Any] | None:
    """Return what a checkpoint says of its quantisation, None if it says nothing.

    It stands in config.json, beside the model or its text part, or in ModelOpt's own file.
    Raises: ModelBroken if that file cannot be parsed.
    """
    for place in (config, config.get_text_config()):
        found = getattr(place, "quantization_config", None)
        # What compressed-tensors wrote at first.
        found = found or getattr(place, "compression_config", None)
        if found is not None:
            told: Mapping[str, Any] = found if isinstance(found, dict) else found.to_dict()
            return told
    file = None if folder is None else folder / _MODELOPT_FILE
    if file is None or not file.is_file():
        return None
    with broken_if(file.parent, _MODELOPT_FILE):
        return {**json.loads(file.read_text()), "quant_method": "modelopt"}


def scheme_of(config: Mapping[str, Any]) -> Scheme:
    """Return what a `quantization_config` says.

    Raises: ModelUnsupported with the method, and with what of it cannot be read.
    """
    method = str(config.get("quant_method", "")).lower()
    read = _METHODS.get(method)
    if read is None:
        known = ", ".join(_METHODS)
        raise ModelUnsupported(
            f"the checkpoint is quantised by {method or 'no method that it names'}, which cannot"
            f" be read here; {known} can"
        )
    try:
        return read(config)
    except (KeyError, TypeError, ValueError, AttributeError, regex.error) as error:
        raise ModelUnsupported(
            f"the quantization_config of {method} cannot be read: {type(error).__name__} {error}"
        ) from error


def _fp8(config: Mapping[str, Any]) -> Scheme:
    _expect(config, "fp8", fmt=("e4m3", "float8_e4m3fn"), activation_scheme=("dynamic", "static"))
    left_out = _names(config, "modules_to_not_convert", "ignored_layers")
    blocks = config.get("weight_block_size")
    if blocks is None:
        both = ("weight_scale", "weight_scale_inv")
        return ListScheme("fp8", Fp8Format(both, ("input_scale", "activation_scale")), left_out)
    outputs, inputs = (int(size) for size in blocks)
    if outputs < 1 or inputs < 1:
        raise ModelUnsupported(f"fp8 weights have blocks of {outputs} x {inputs}")
    return ListScheme("fp8", Fp8BlockFormat(outputs, inputs), left_out)


def _fbgemm(config: Mapping[str, Any]) -> Scheme:
    # An upper bound of the activations' scales is for kernels that round these.
    return ListScheme("fbgemm_fp8", Fp8Format(), _names(config, "modules_to_not_convert"))


def _awq(config: Mapping[str, Any]) -> Scheme:
    _expect(config, "awq", version=("gemm",), zero_point=(True,))
    if int(config.get("bits", config.get("w_bit", 0))) != 4:
        raise ModelUnsupported("awq weights are read with 4 bits alone")
    group = _group(config.get("group_size", config.get("q_group_size")), "awq")
    return ListScheme("awq", AwqFormat(group), _names(config, "modules_to_not_convert"))


def _gptq(config: Mapping[str, Any]) -> Scheme:
    version = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if version not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise ModelUnsupported(f"gptq weights are laid out for {version}, which cannot be read")

    def format_by(told: Mapping[str, Any]) -> GptqFormat:
        bits = int(told["bits"])
        if bits not in (4, 8):
            raise ModelUnsupported(f"gptq weights of {bits} bits cannot be read, 4 and 8 can")
        group, has_order = _group(told.get("group_size"), "gptq"), bool(told.get("desc_act", False))
        return GptqFormat(bits, group, zeros_less_one=version == "gptq", has_order=has_order)

    # Settings of some modules: of what stands behind `-:` there are none, it is plain.
    rules = tuple(
        (
            compiled(pattern.removeprefix("-:").removeprefix("+:")),
            None if pattern.startswith("-:") else format_by({**config, **more}),
        )
        for pattern, more in (config.get("dynamic") or {}).items()
    )
    return ListScheme(
        "gptq",
        format_by(config),
        _names(config, "modules_to_not_convert"),
        reads_head=bool(config.get("lm_head", False)),
        rules=rules,
    )


def _modelopt(config: Mapping[str, Any]) -> Scheme:
    told = config.get("quantization", config)
    algorithm = str(told.get("quant_algo") or "").upper()
    left_out = _names(told, "exclude_modules", "ignore")
    if not algorithm and told.get("kv_cache_quant_algo"):
        # Only the KV cache was calibrated.
        return ModelOptScheme("modelopt", None, left_out)
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        return ModelOptScheme("modelopt", Fp8Format(), left_out)
    if algorithm == "FP8_PB_WO":
        return ModelOptScheme("modelopt", Fp8BlockFormat(128, 128, "weight_scale"), left_out)
    raise ModelUnsupported(
        f"modelopt weights of algorithm {algorithm or 'none'} cannot be read; FP8,"
        " FP8_PER_CHANNEL_PER_TOKEN and FP8_PB_WO can"
    )


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "compressed-tensors": CompressedScheme.of,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "awq": _awq,
    "gptq": _gptq,
    "modelopt": _modelopt,
}


def _expect(config: Mapping[str, Any], method: str, **known: tuple[Any, ...]) -> None:
    """Refuse a setting with another value than those known."""
    for key, values in known.items():
        value = config.get(key)
        value = value.lower() if isinstance(value, str) else value
        if value is not None and value not in values:
            told = " or ".join(map(str, values))
            raise ModelUnsupported(
                f"{method} weights with {key} {value} cannot be read, {told} can"
            )


def _group(size: Any, method: str) -> int | None:
    """Return the inputs of a group, None for whole rows (-1)."""
    found = int(size)
    if found == -1:
        return None
    if found < 1:
        raise ModelUnsupported(f"{method} weights have groups of {found} inputs")
    return found


def _names(config: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    """Return the modules that the config lists under any of the keys."""
    return tuple(str(name) for key in keys for name in config.get(key) or ())
