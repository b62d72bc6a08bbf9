"""Kernels compiled ahead: none runs before, all are ready afterwards."""

from __future__ import annotations

import subprocess

import pytest
import torch
import triton
import triton.language as tl

from tokenbus.kernels.compile_ahead import compiling_ahead


@triton.jit  # type: ignore[untyped-decorator]
def _fill_kernel(out, value, N: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Write `value` to N places."""
    tl.store(out + tl.arange(0, N), tl.zeros([N], tl.float32) + value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_launches_compile_and_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside nothing is written; afterwards the same launches compile nothing and write.

    No compiler of another language is run for them either.
    """
    out = torch.zeros(64, device="cuda")
    with compiling_ahead():
        for size in (16, 32, 64):
            _fill_kernel[(1,)](out, 2.0, size)
    torch.cuda.synchronize()
    assert not out.any()
    compiled: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_given, **_options: pytest.fail("a process"))
    triton.knobs.runtime.jit_post_compile_hook = lambda **kwargs: compiled.append(kwargs)
    try:
        for size in (16, 32, 64):
            _fill_kernel[(1,)](out, 2.0, size)
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None
    assert (out == 2.0).all()
    assert not compiled
