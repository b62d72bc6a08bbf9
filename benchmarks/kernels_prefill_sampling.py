"""Measure paged prefill and sampling on a GPU, against their twins and against torch.

    python -P benchmarks/kernels_prefill_sampling.py [--sweep] [--json FILE]

Times are medians of CUDA-graph replays, taken after everything was compiled in parallel.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton

from tokenbus.engine.sampling.plan import LOGIT_RULES, is_greedy
from tokenbus.engine.sampling.random_draw import stream_key, uniforms
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams
from tokenbus.kernels import reference
from tokenbus.kernels.attention.paged_prefill import PrefillTuning, choose_tuning, paged_prefill

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class PrefillCase:
    """Sequences of (tokens of this pass, tokens in all) and an attention shape."""

    name: str
    lens: tuple[tuple[int, int], ...]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 64

    def flops(self) -> float:
        """Count the operations of visible pairs: q k^T and p v, two each."""
        pairs = sum(q * (c - q) + q * (q + 1) / 2 for q, c in self.lens)
        return 4.0 * self.head_dim * self.num_heads * pairs


_PLAIN = SamplingParams(temperature=0.6)


@dataclass(frozen=True, slots=True)
class SamplingCase:
    """A batch of rows that share their parameters; `spread` scales normal logits.

    Rows have said 300 tokens of any kind behind a prompt of 560 of the 10,000 smallest.
    """

    name: str
    num_rows: int
    params: SamplingParams = _PLAIN
    spread: float = 2.0
    dtype: torch.dtype = torch.bfloat16
    vocab_size: int = 151936


MIXED = tuple((100 + 924 * i // 31, 100 + 924 * i // 31) for i in range(32))
PREFILL = [
    PrefillCase("8k alone", ((8192, 8192),)),
    PrefillCase("2k after 14k", ((2048, 16384),)),
    PrefillCase("32 x 100-1024", MIXED),
    PrefillCase("32 x 100-1024, 16 heads", MIXED, num_heads=16),
    PrefillCase("8 x 256 after 2k", ((256, 2304),) * 8),
    PrefillCase("8k alone, D 64", ((8192, 8192),), head_dim=64),
    PrefillCase("8k alone, D 256", ((8192, 8192),), num_heads=16, head_dim=256),
    PrefillCase("8k alone, pages of 16", ((8192, 8192),), page_size=16),
]
SWEEP = [
    PrefillTuning(128, 64, 8, 5, 3, True),
    PrefillTuning(128, 64, 8, 3, 3, True),
    PrefillTuning(128, 64, 8, 5, 3, False),
    PrefillTuning(128, 128, 8, 3, 1, False),
    PrefillTuning(64, 64, 4, 5, 3, True),
    PrefillTuning(64, 64, 4, 5, 1, True),
    PrefillTuning(64, 64, 4, 3, 3, True),
    PrefillTuning(64, 64, 4, 5, 3, False),
    PrefillTuning(64, 32, 4, 5, 3, True),
]
_TOP_K_P = SamplingParams(temperature=0.7, top_k=20, top_p=0.95)
_PENALTIES = SamplingParams(temperature=0.6, repetition_penalty=1.1, presence_penalty=0.2)
_ALL = replace(
    _PENALTIES, top_k=50, top_p=0.9, frequency_penalty=0.1, logit_bias={7: 1.0}, bad_words=((5, 6),)
)
SAMPLING = [
    *(SamplingCase(f"temperature, M {m}", m) for m in (1, 8, 64, 256)),
    SamplingCase("temperature, fp32, M 256", 256, dtype=torch.float32),
    SamplingCase("greedy, M 256", 256, SamplingParams(temperature=0.0)),
    *(SamplingCase(f"top-k 20, top-p 0.95, M {m}", m, _TOP_K_P) for m in (1, 8, 256)),
    SamplingCase("top-k 50, M 256", 256, SamplingParams(temperature=0.7, top_k=50)),
    SamplingCase("min-p 0.05, M 256", 256, SamplingParams(min_p=0.05)),
    *(
        SamplingCase(f"top-p 0.9, peaked, M {m}", m, SamplingParams(temperature=0.6, top_p=0.9), 3)
        for m in (1, 256)
    ),
    *(
        SamplingCase(f"top-p 0.95, flat, M {m}", m, SamplingParams(top_p=0.95), 1.0)
        for m in (1, 256)
    ),
    *(SamplingCase(f"penalties, M {m}", m, _PENALTIES) for m in (1, 8, 256)),
    SamplingCase("all rules and filters, M 256", 256, _ALL),
    *(
        SamplingCase(
            f"{k} log-probabilities, M 256", 256, replace(_PLAIN, logprobs=k), dtype=torch.float32
        )
        for k in (0, 20)
    ),
]


def median_us(function: Callable[[], object]) -> float:
    """Time replays of a captured graph: device time without launch gaps."""
    return 1e3 * float(triton.testing.do_bench_cudagraph(function, rep=15, return_mode="median"))


def randn(*shape: int) -> torch.Tensor:
    """Draw normal bf16 values on the GPU."""
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)


def prepare_prefill(
    case: PrefillCase, tuning: PrefillTuning | None
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Allocate a case with its pages in random order and return its launch and its twin."""
    counts = [-(-context // case.page_size) for _, context in case.lens]
    order = (torch.randperm(sum(counts), device=DEVICE) + 1).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=DEVICE)
    for row, pages in enumerate(torch.split(order, counts)):
        table[row, : len(pages)] = pages
    shape = (sum(counts) + 1, case.num_kv_heads, case.page_size, case.head_dim)
    k_pages, v_pages = randn(*shape), randn(*shape)
    lens = torch.tensor(case.lens, dtype=torch.int32, device=DEVICE)
    borders = torch.nn.functional.pad(lens[:, 0].cumsum(0, dtype=torch.int32), (1, 0))
    context_lens = lens[:, 1].contiguous()
    q = randn(int(borders[-1]), case.num_heads, case.head_dim)
    out = torch.full_like(q, float("nan"))

    def launch() -> torch.Tensor:
        return paged_prefill(
            q, k_pages, v_pages, table, context_lens, borders, scale=case.head_dim**-0.5,
            out=out, tuning=tuning,
        )  # fmt: skip

    def twin() -> torch.Tensor:
        return reference.paged_prefill(
            q, k_pages, v_pages, table, context_lens, borders, scale=case.head_dim**-0.5
        )

    return launch, twin


def prepare_sampling(
    case: SamplingCase,
) -> tuple[Callable[[], torch.Tensor], torch.Tensor | None]:
    """Allocate a case and return its launch, and what its twin draws if it has no rules."""
    source = random.Random(0)
    logits = torch.randn(case.num_rows, case.vocab_size, device=DEVICE) * case.spread
    logits = logits.to(case.dtype)
    state = SamplingState(case.num_rows, case.vocab_size, DEVICE)
    for row in range(case.num_rows):
        prompt = [source.randrange(10_000) for _ in range(560)]
        output = [source.randrange(case.vocab_size) for _ in range(300)]
        state.set_row(row, replace(case.params, seed=row), 0, prompt, output)
    state.flush()
    rows = torch.arange(case.num_rows, device=DEVICE)
    positions = torch.full_like(rows, 300)
    plan = state.plan(range(case.num_rows))

    def launch() -> torch.Tensor:
        return state.sample_with_plan(logits, rows, positions, plan).token_ids

    if plan.has(LOGIT_RULES):
        return launch, None
    params = case.params
    full = [
        torch.full((case.num_rows,), value, device=DEVICE)
        for value in (params.temperature or 1.0, params.top_k, params.top_p, params.min_p)
    ]
    keys = torch.tensor([stream_key(row, 0) for row in range(case.num_rows)], device=DEVICE)
    u = uniforms(keys[:, 0].contiguous(), keys[:, 1].contiguous(), positions)
    is_random = torch.full((case.num_rows,), int(not is_greedy(params)), device=DEVICE)
    scalars = (*full, u, is_random)
    expected = [
        reference.draw_rows(logits[i : i + 32], *(s[i : i + 32] for s in scalars))
        for i in range(0, case.num_rows, 32)
    ]
    return launch, torch.cat(expected)


def compile_one(job: tuple[PrefillCase, PrefillTuning | None] | SamplingCase) -> str | None:
    """Run a case once, so that its binary is in the cache; return what went wrong."""
    try:
        if isinstance(job, SamplingCase):
            prepare_sampling(replace(job, num_rows=2))[0]()
        else:
            prepare_prefill(*job)[0]()
        torch.cuda.synchronize()
    except triton.runtime.errors.OutOfResources as error:
        return f"{job}: {error}"
    return None


def compile_all(
    jobs: list[SamplingCase | tuple[PrefillCase, PrefillTuning | None]], num_processes: int
) -> None:
    """Fill the cache of binaries by several processes."""
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        problems = [problem for problem in pool.map(compile_one, jobs) if problem]
    print(f"compiled in {time.monotonic() - started:.0f} s", *problems, sep="\n  ", flush=True)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm; NaN stays NaN."""
    return float((out.float() - expected).norm() / expected.norm())


def torch_attention_us(case: PrefillCase) -> float:
    """Time torch's fastest causal attention on one unpaged sequence."""
    length = case.lens[0][0]
    q = randn(1, case.num_heads, length, case.head_dim)
    k, v = (randn(1, case.num_kv_heads, length, case.head_dim) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    return median_us(lambda: attend(q, k, v, is_causal=True, enable_gqa=True))


def run_prefill(jobs: list[tuple[PrefillCase, PrefillTuning | None]]) -> list[dict[str, object]]:
    """Measure every job; check the small ones against the twin."""
    results: list[dict[str, object]] = []
    for case, tuning in jobs:
        launch, twin = prepare_prefill(case, tuning)
        layout = tuning or choose_tuning(torch.bfloat16, case.head_dim, case.page_size, DEVICE)
        row: dict[str, object] = {"case": case.name, "tuning": str(layout)}
        try:
            out = launch().clone()
        except triton.runtime.errors.OutOfResources:
            continue
        if max(context for _, context in case.lens) <= 2304:
            row["error"] = relative_error(out, twin())
        row["us"] = median_us(launch)
        row["tflops"] = case.flops() / float(str(row["us"])) / 1e6
        results.append(row)
        short = str(layout).replace("PrefillTuning", "")
        print(f"{case.name:26s} {row['us']:9.1f} us {row['tflops']:6.0f} TFLOP/s "
              f"err {row.get('error', float('nan')):.1e} {short}", flush=True)  # fmt: skip
    return results


def run_sampling(cases: list[SamplingCase]) -> list[dict[str, object]]:
    """Measure every case; count the rows that draw another token than the fp64 twin."""
    results: list[dict[str, object]] = []
    for case in cases:
        launch, expected = prepare_sampling(case)
        differing = None if expected is None else int((launch() != expected).sum())
        time_us = median_us(launch)
        size = case.num_rows * case.vocab_size * torch.finfo(case.dtype).bits / 8
        results.append({"case": case.name, "us": time_us, "differing": differing,
                        "gb_per_s": size / time_us / 1e3})  # fmt: skip
        print(f"{case.name:34s} {time_us:8.1f} us, one read at {size / time_us / 1e3:5.0f} GB/s, "
              f"{differing}/{case.num_rows} rows differ from the twin", flush=True)  # fmt: skip
    return results


def main() -> None:
    """Parse the command line, compile in parallel, measure alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="every layout of prefill")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile-only", action="store_true", help="fill the cache and stop")
    parser.add_argument("--compile-jobs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    prefill: list[tuple[PrefillCase, PrefillTuning | None]] = [(case, None) for case in PREFILL]
    if args.sweep:
        prefill += [(case, tuning) for tuning in SWEEP for case in PREFILL[:3]]
    compile_all([*SAMPLING, *prefill], args.compile_jobs)
    if args.compile_only:
        return
    name = torch.cuda.get_device_name()
    results: dict[str, object] = {"gpu": name, "torch": torch.__version__}
    results["triton"] = triton.__version__
    results["torch_8k_us"] = torch_attention_us(PREFILL[0])
    tflops = PREFILL[0].flops() / float(str(results["torch_8k_us"])) / 1e6
    print(f"{name}: torch attention, 8k alone: {results['torch_8k_us']:.0f} us, {tflops:.0f}")
    results["sampling"] = run_sampling(SAMPLING)
    results["prefill"] = run_prefill(prefill)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
