"""Triton's interpreter, which puts its words into Triton's language once, not at every call."""

from types import SimpleNamespace
from typing import Any

import triton
import triton.language as tl
from triton.runtime import interpreter


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
