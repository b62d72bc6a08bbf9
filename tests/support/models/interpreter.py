"""Triton's interpreter, which puts its words into Triton's language once, not at every call.

What it asks about each operation it asks of NumPy here, not of itself: whether an integer overflows
took it six operations of its own, and the NumPy type of a value a table that it made anew.
"""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import triton
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

if TYPE_CHECKING:
    from collections.abc import Callable

_ON_INTEGERS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def keep_language() -> None:
    """Let the interpreter leave its words in the language; where kernels are compiled, do nothing.

    It puts the same words there for each launch, and again for each call of a device function
    in it: for kernels of small shapes that takes longer than all the rest.
    """
    if not triton.knobs.runtime.interpret:
        return
    # Triton's own device functions know the language by its inner module.
    both: Any = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    interpreter._patch_lang(both)
    # Up to 3.6 it takes a number from an array of one, which NumPy forbids since 2.4.
    tl.tensor.__index__ = lambda number: int(number.handle.data.squeeze())
    kept = SimpleNamespace(restore=lambda: None)
    interpreter._patch_lang = lambda _: kept
    TritonSemantic.binary_op_sanitize_overflow_impl = _refuse_overflow
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)


def _refuse_overflow(_: Any, left: Any, right: Any, operation: Callable[..., Any]) -> None:
    """Compute in 64 bits and look at the range. Raises: AssertionError, outside of it.

    Numbers without a sign go round, as hashes want them to.
    """
    kind, name = left.type.scalar, operation.__name__
    if kind.int_bitwidth >= 64 or kind.is_int_unsigned():
        return
    values = [side.handle.data.astype(np.int64) for side in (left, right)]
    exact = _ON_INTEGERS[name](*values)
    if exact.size and not (
        kind.get_int_min_value() <= exact.min() and exact.max() <= kind.get_int_max_value()
    ):
        raise AssertionError(f"int{kind.int_bitwidth} overflow detected for operation {name}")


def _remembered(look_up: Callable[[Any], np.dtype[Any]]) -> Callable[[Any], np.dtype[Any]]:
    """Look up the NumPy type of each of Triton's types of numbers once."""
    known: dict[str, np.dtype[Any]] = {}

    def numpy_type(dtype: Any) -> np.dtype[Any]:
        number = dtype.scalar
        if number.name not in known:
            known[number.name] = look_up(number)
        return known[number.name]

    return numpy_type
