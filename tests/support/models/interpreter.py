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
    # The interpreter's own word asks NumPy to read an array of one number as one: 2.5 refuses.
    tl.core.tensor.__index__ = lambda self: self.handle.data.item()
    kept = SimpleNamespace(restore=lambda: None)
    interpreter._patch_lang = lambda _: kept
