"""The compiled decoder against the one in torch, and machines that cannot compile it."""

from __future__ import annotations

import logging
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.backends import CPU, cpu_backend, stepwise_backend
from transformers import Gemma2Config, LlamaConfig

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.backends import NativeBackend
from tokenbus.engine.build import load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelUnsupported, RequestRejected
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.kv_cache import KVCache
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.models.native_ops import NativeOps
from tokenbus.engine.native_library import _library_path, native_library
from tokenbus.engine.weights.loader import build_model
from tokenbus.engine.weights.readers import choose_reader
from tokenbus.kernels.cpu import compile as kernels
from tokenbus.kernels.cpu.compile import CompilerMissing, compiled_library
from tokenbus.kernels.cpu.native import NativeLibrary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenbus.engine.models.backend import Backend

pytestmark = pytest.mark.each_value

# (queries, tokens after the pass) per sequence: few rows, many rows, one and many mixed.
_BATCHES = {
    "N1-T1": [(1, 1)],
    "N5-T5": [(1, 17), (1, 16), (1, 200), (1, 1), (1, 33)],
    "N3-T20": [(7, 7), (1, 50), (12, 90)],
    "N2-T450": [(430, 430), (20, 300)],
    "N40-T330": [(1, 40)] * 30 + [(30, 31)] * 10,
}


def _hidden(model: Any, lens: list[tuple[int, int]], dtype: torch.dtype) -> torch.Tensor:
    """Return what a pass computes over finite history and poisoned memory."""
    torch.manual_seed(5)
    counts = [-(-context // 16) for _, context in lens]
    kv = KVCache(model.attention_specs, 1 + sum(counts), 16, dtype, CPU)
    for pages in (*kv.k, *kv.v):
        pages.fill_(torch.nan)
    tables, slots, positions, page = [], [], [], 1
    for (queries, context), count in zip(lens, counts, strict=True):
        tables.append(list(range(page, page + count)))
        old = torch.arange(context - queries)
        for pages in (*kv.k, *kv.v):
            heads, dim = pages.shape[1], pages.shape[3]
            past = torch.randn(context - queries, heads, dim).to(dtype)
            pages[page + old // 16, :, old % 16] = past
        positions.append(torch.arange(context - queries, context))
        slots.append(page * 16 + positions[-1])
        page += count
    width, query_lens = max(counts), [queries for queries, _ in lens]
    ctx = ForwardContext(
        kv=kv,
        positions=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        block_table=torch.tensor(
            [pages + [10**8] * (width - len(pages)) for pages in tables], dtype=torch.int32
        ),
        context_lens=torch.tensor([context for _, context in lens], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        query_lens=query_lens,
        context_lens_host=[context for _, context in lens],
    )
    ids = torch.randint(3, 199, (sum(query_lens),))
    logits: torch.Tensor = model.logits(model.forward(ids, ctx))
    return logits


@pytest.fixture(params=["llama", "llama-biased", "gemma2"])
def make(request: pytest.FixtureRequest, sizes: Any, draw_model: Any) -> Any:
    """Return a function that builds one model over any backend in any dtype."""
    config: Any = {
        "llama": LlamaConfig(**sizes(hidden_size=80, intermediate_size=130)),
        "llama-biased": LlamaConfig(**sizes(attention_bias=True, mlp_bias=True)),
        "gemma2": Gemma2Config(**sizes(sliding_window=24, query_pre_attn_scalar=20)),
    }[request.param]
    weights = draw_model(config).state_dict()

    def build(dtype: torch.dtype, backend: Backend, quantization: str | None = None) -> Any:
        return build_model(
            config,
            weights,
            backend,
            dtype=dtype,
            max_model_len=700,
            reader=choose_reader(quantization),
        )

    return build


@pytest.fixture(scope="module")
def library_for_haswell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the kernels as a processor without AVX-512 would have them."""
    try:
        return compiled_library(tmp_path_factory.mktemp("haswell"), "-march=haswell")
    except CompilerMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("name", _BATCHES)
@torch.inference_mode()
def test_compiled_pass_equals_torch(make: Any, name: str, num_threads: int) -> None:
    """In float32 the logits are equal, by panels or blocks of rows, on any number of threads."""
    ours = make(torch.float32, cpu_backend())
    if not isinstance(ours.ops, NativeOps):
        pytest.skip("there is no C++ compiler")
    expected = _hidden(make(torch.float32, stepwise_backend()), _BATCHES[name], torch.float32)
    torch.set_num_threads(num_threads)
    try:
        logits = _hidden(ours, _BATCHES[name], torch.float32)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", _BATCHES)
@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_torch_is(make: Any, name: str) -> None:
    """Rounded weights and activations cost no more than in torch's own bfloat16 steps."""
    ours = make(torch.bfloat16, cpu_backend())
    if not isinstance(ours.ops, NativeOps):
        pytest.skip("there is no C++ compiler")
    exact = _hidden(make(torch.float32, stepwise_backend()), _BATCHES[name], torch.float32)
    theirs = _hidden(make(torch.bfloat16, stepwise_backend()), _BATCHES[name], torch.bfloat16)
    logits = _hidden(ours, _BATCHES[name], torch.bfloat16)
    error, their_error = (logits - exact).norm(), (theirs - exact).norm()
    assert error <= 1.1 * their_error


def _rounded_to_int8(weight: torch.Tensor) -> torch.Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    return (weight / scale).round() * scale


def _rounded_to_int4(weight: torch.Tensor) -> torch.Tensor:
    """Round to 16 steps between the least and the largest of every 32 inputs of an output."""
    parts = []
    for part in torch.split(weight, 32, 1):
        low = part.amin(1, keepdim=True).bfloat16().float()
        scale = ((part.amax(1, keepdim=True) - low) / 15).bfloat16().float()
        steps = ((part - low) / scale.clamp(min=1e-30)).round().clamp(0, 15)
        parts.append(steps * scale + low)
    return torch.cat(parts, 1)


_ROUND = {"int8": _rounded_to_int8, "int4": _rounded_to_int4}


def _round_all(model: Any, quantization: str) -> Any:
    *layers, head = model.tensors.linears()
    for linear in layers:
        _round(linear, _ROUND[quantization])
    # The head keeps a byte.
    _round(head, _rounded_to_int8)
    model.ops.prepare(model.tensors)
    return model


def _round(linear: Any, rounded: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = linear.weight.values
    linear.weight = PlainWeight(rounded(values.float()).to(values.dtype))


def _native_backend(library: NativeLibrary | None = None) -> NativeBackend:
    library = library or native_library()
    if library is None:
        pytest.skip("there is no C++ compiler")
    return NativeBackend(device=CPU, attention=NativeAttention(library))


@pytest.mark.parametrize("quantization", _ROUND)
@torch.inference_mode()
def test_quantized_weights_are_rounded_and_nothing_else(make: Any, quantization: str) -> None:
    """The logits are those of a float32 model whose weights were rounded in the same way."""
    rounded = _round_all(make(torch.float32, stepwise_backend()), quantization)
    ours = make(torch.float32, _native_backend(), quantization)
    for lens in _BATCHES.values():
        expected = _hidden(rounded, lens, torch.float32)
        logits = _hidden(ours, lens, torch.float32)
        torch.testing.assert_close(logits, expected, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("quantization", _ROUND)
@torch.inference_mode()
def test_quantized_weights_multiply_in_bfloat16(make: Any, quantization: str) -> None:
    """Few rows and many are as near to the rounded model in float32 as torch's bfloat16 is."""
    exact_model = _round_all(make(torch.float32, stepwise_backend()), quantization)
    torch_model = _round_all(make(torch.bfloat16, stepwise_backend()), quantization)
    ours = make(torch.bfloat16, _native_backend(), quantization)
    for lens in _BATCHES.values():
        exact = _hidden(exact_model, lens, torch.float32)
        theirs = _hidden(torch_model, lens, torch.bfloat16)
        logits = _hidden(ours, lens, torch.bfloat16)
        assert (logits - exact).norm() <= 1.2 * (theirs - exact).norm()


def test_quantized_weights_are_refused_where_they_cannot_be(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other names, other dtypes and machines without a compiler are told, not ignored."""
    with pytest.raises(RequestRejected, match="int3 is not fp8 or int8 or int4"):
        EngineConfig("model", quantization="int3")
    library = native_library()
    if library is not None:
        with pytest.raises(ModelUnsupported, match="float16"):
            NativeOps(NativeAttention(library)).prepare(
                make(torch.float16, stepwise_backend()).tensors
            )
        half = EngineConfig("model", device="cpu", dtype="float16", quantization="int8")
        with pytest.raises(RequestRejected, match="int8 weights are not for float16"):
            load_for(half)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path))
    _library_path.cache_clear()
    try:
        with pytest.raises(RequestRejected, match="compiled kernels"):
            load_for(EngineConfig("model", device="cpu", quantization="int8"))
    finally:
        _library_path.cache_clear()


def test_without_a_compiler_a_model_runs_in_torch_and_says_so(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty PATH costs speed and one warning, which tells what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path))
    _library_path.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            models = [make(torch.float32, cpu_backend()) for _ in range(2)]
    finally:
        _library_path.cache_clear()
    assert not any(isinstance(model.ops, NativeOps) for model in models)
    assert len(caplog.messages) == 1
    assert "no C++ compiler" in caplog.text
    assert "Install g++ or clang++" in caplog.text
    assert _hidden(models[0], [(5, 5)], torch.float32).isfinite().all()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_processor_without_wide_vectors_computes_the_same(
    make: Any, library_for_haswell: Path, dtype: torch.dtype
) -> None:
    """Compiled for AVX2 alone, the kernels are as near to float32 as torch."""
    for lens in _BATCHES.values():
        exact = _hidden(make(torch.float32, stepwise_backend()), lens, torch.float32)
        theirs = _hidden(make(dtype, stepwise_backend()), lens, dtype)
        logits = _hidden(
            make(dtype, _native_backend(NativeLibrary(library_for_haswell))), lens, dtype
        )
        assert (logits - exact).norm() <= 1.1 * (theirs - exact).norm() + 1e-5 * exact.norm()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 processor")
@pytest.mark.parametrize("quantization", _ROUND)
@torch.inference_mode()
def test_a_processor_without_wide_vectors_rounds_the_same(
    make: Any, library_for_haswell: Path, quantization: str
) -> None:
    """Compiled for AVX2 alone, rounded weights are the same numbers."""
    rounded = _round_all(make(torch.float32, stepwise_backend()), quantization)
    ours = make(torch.float32, _native_backend(NativeLibrary(library_for_haswell)), quantization)
    for lens in _BATCHES.values():
        expected = _hidden(rounded, lens, torch.float32)
        logits = _hidden(ours, lens, torch.float32)
        torch.testing.assert_close(logits, expected, atol=5e-4, rtol=5e-4)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler complains about is in the message, and nothing half-made is kept."""
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho too old for this >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    with pytest.raises(CompilerMissing, match="too old for this"):
        compiled_library(tmp_path / "kernels")
    assert list((tmp_path / "kernels").iterdir()) == []


def test_processes_that_need_the_library_at_once_compile_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one waits for the first, and takes what that has made."""
    compiler, cache = tmp_path / "bin" / "c++", tmp_path / "kernels"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\necho "$@" >> "$0.calls"; sleep 0.2\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(compiled_library, [cache] * 4))
    assert [*cache.iterdir()] == [*made]
    assert len((compiler.parent / "c++.calls").read_text().splitlines()) == 1


def test_another_processor_gets_a_library_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a home folder never load each other's instructions."""
    here = kernels._fingerprint(())
    monkeypatch.setattr(kernels, "_instructions", lambda: "flags: fpu sse2")
    assert kernels._fingerprint(()) != here
