"""`tokenbus size`: prints the sizes of a pool, a line each with its formula."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import RequestRejected
from tokenbus.producer.terminal import visible
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.sizing.model_size import ModelSize, read_model_size
from tokenbus.worker.sizing.pool_size import GIB, Load, Machine, Size, pool_sizes

if TYPE_CHECKING:
    from argparse import Namespace

_NAME_WIDTH, _VALUE_WIDTH = 18, 12
_NUMBERS = ("weights_gib", "layers", "kv_heads", "head_dim")
_MAY_BE_ZERO = {"other_gib", "shared_tokens", "think_s", "wait_s"}


def run_size(args: Namespace) -> int:
    """Compute all sizes and print them.

    Raises: SettingsInvalid for numbers that make no sense; ModelNotFound, ModelBroken or
        ModelUnsupported for a model that cannot be sized.
    """
    given = vars(args)
    machine = Machine(
        reserve_fraction=WorkerSettings.model_fields["reserve_fraction"].default,
        **{item.name: given[item.name] for item in fields(Machine) if item.name in given},
    )
    _check(args, machine)
    load = Load(**{item.name: given[item.name] for item in fields(Load)})
    sizes = pool_sizes(_model_size(args), machine, load)
    if args.json:
        print(json.dumps([asdict(size) for size in sizes]))
    else:
        print(visible("\n".join(map(_line, sizes)), lines=True))
    return 0


def _check(args: Namespace, machine: Machine) -> None:
    """Hold the engine's settings against its bounds, and all other numbers against nothing."""
    try:
        EngineConfig(
            model="",
            page_size=machine.page_size,
            memory_fraction=machine.memory_fraction,
            kv_cache_gib=machine.kv_cache_gib,
            max_num_seqs=machine.max_num_seqs,
            tensor_parallel=machine.tensor_parallel,
        )
    except RequestRejected as error:
        raise SettingsInvalid(str(error)) from None
    for name, value in vars(args).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        least = 0 if name in _MAY_BE_ZERO else sys.float_info.min
        if is_number and not least <= value < math.inf:
            raise _refused(name, f"{value:g} is not above 0")
    if args.shared_tokens > args.prompt_tokens:
        raise _refused("shared_tokens", "a prompt cannot share more tokens than it has")
    if args.quantization == "int8":
        raise _refused("quantization", "int8 is for CPUs, whose weights are not sized as rounded")
    is_of_gpus = args.quantization or args.kv_cache_dtype != "auto" or args.tensor_parallel > 1
    if machine.gpu_gib is None and is_of_gpus:
        raise _refused("gpu_gib", "is needed: numbers rounded or divided are sized for GPUs")


def _refused(name: str, told: str) -> SettingsInvalid:
    return SettingsInvalid(f"--{name.replace('_', '-')}: {told}")


def _model_size(args: Namespace) -> ModelSize:
    numbers = [getattr(args, name) for name in _NUMBERS]
    if args.model is not None:
        if any(number is not None for number in numbers):
            raise SettingsInvalid("MODEL: give a model or its numbers, not both")
        return read_model_size(args.model)
    if None in numbers:
        raise _refused(_NUMBERS[numbers.index(None)], "give a model, or all of its numbers")
    weights_gib, layers, kv_heads, head_dim = numbers
    return ModelSize(layers, kv_heads, head_dim, weight_bytes=weights_gib * GIB)


def _line(size: Size) -> str:
    return f"{size.name:{_NAME_WIDTH}}{_shown(size):>{_VALUE_WIDTH}}  = {size.formula}"


def _shown(size: Size) -> str:
    """Return a value as people read it."""
    value: Any = size.value
    if size.unit == "B":
        for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= scale:
                return f"{value / scale:,.2f} {unit}"
        return f"{value:,.0f} B"
    if size.unit:
        return f"{value:,.2f} {size.unit}"
    return f"{value:,.0f}"
