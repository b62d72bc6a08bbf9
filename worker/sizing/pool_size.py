"""Sizes of a pool: weights, pages, jobs at once, users, workers, each told with its formula.

The page docs/sizing.md has the same formulas in words. What the engine allocates is decided by
`engine.build` and `engine.kv_cache`; a test compares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.config import KEPT_IN_FP8_SHARE
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.sizing.model_size import DTYPE_BYTES

if TYPE_CHECKING:
    from tokenbus.worker.sizing.model_size import ModelSize

GIB = 2**30
# Bytes of a weight that was rounded for a GPU: of four bits, 128 share two bytes of scale and one
# of zero point.
_ROUNDED_BYTES = {"fp8": 1.0, "int4": 0.5 + 3 / 128}
# Tokens per page on a CPU and on a GPU, unless it is set.
CPU_PAGE_TOKENS, GPU_PAGE_TOKENS = 16, 64
# The scale of a token and head in pages of FP8.
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Machine:
    """What one worker has and how it is set; gpu_gib is that of one GPU, None on a CPU.

    other_gib: what CUDA, kernels and their work space take of a GPU. reserve_fraction: the share of
    the pages that no pull counts on.
    """

    gpu_gib: float | None
    other_gib: float
    memory_fraction: float
    kv_cache_gib: float
    page_size: int | None
    max_num_seqs: int
    reserve_fraction: float
    tensor_parallel: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Load:
    """The jobs that come: tokens of one, jobs a second, and how long what may take.

    shared_tokens: of a prompt, those at its beginning that all prompts have in common. gap_ms:
    between two tokens of a stream. tokens_per_s: what one worker generates with such jobs.
    burst_s: how long `rate` lasts, None for ever; wait_s: how much longer its last job may wait.
    think_s: a user's pause between an answer and the next question.
    """

    prompt_tokens: int
    output_tokens: int
    shared_tokens: int
    gap_ms: float
    think_s: float
    wait_s: float
    rate: float | None = None
    tokens_per_s: float | None = None
    burst_s: float | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """One figure: its name, its value in `unit`, and the numbers that it was computed from."""

    name: str
    value: float
    unit: str
    formula: str


def pool_sizes(model: ModelSize, machine: Machine, load: Load) -> list[Size]:
    """Return all sizes in the order in which they follow from each other.

    Raises: SettingsInvalid where the weights, a page or one job does not fit.
    """
    total = load.prompt_tokens + load.output_tokens
    if model.max_model_len is not None and total > model.max_model_len:
        raise SettingsInvalid(
            f"--prompt-tokens: {total} tokens with the answer, the model ends at"
            f" {model.max_model_len}"
        )
    weights = _weights(model, machine)
    token, page = _page(model, machine)
    pages = _pages(machine, weights, page)
    jobs = _jobs_at_once(machine, load, pages)
    return [weights, token, page, pages, jobs, *_flow(load, jobs)]


def _weights(model: ModelSize, machine: Machine) -> Size:
    if model.weight_bytes is not None:
        told = f"as given{_shared(machine.tensor_parallel)}"
        return Size("weights", model.weight_bytes / machine.tensor_parallel, "B", told)
    dtype = model.dtype if machine.dtype == "auto" else machine.dtype
    item, ranks = DTYPE_BYTES[dtype], machine.tensor_parallel
    layer = _ROUNDED_BYTES.get(machine.quantization or "", item)
    gpu_bytes = (machine.gpu_gib or 0) * GIB
    if (
        machine.quantization == "int4"
        and model.layer_parameters / ranks <= KEPT_IN_FP8_SHARE * gpu_bytes
    ):
        layer += _ROUNDED_BYTES["fp8"]
    return Size(
        "weights",
        model.layer_parameters * layer / ranks + model.other_parameters * item,
        "B",
        f"{model.layer_parameters:,} of the layers x {layer:.4g} B{_shared(ranks)}"
        f" + {model.other_parameters:,} others x {item} B",
    )


def _shared(ranks: int) -> str:
    return "" if ranks == 1 else f" / {ranks} GPUs"


def _page(model: ModelSize, machine: Machine) -> tuple[Size, Size]:
    """Return what keys and values of a token take, and of a page."""
    if machine.kv_cache_dtype == "fp8":
        head, told = model.head_dim + _SCALE_BYTES, f"({model.head_dim} + {_SCALE_BYTES}) B"
    else:
        item = DTYPE_BYTES[model.dtype if machine.dtype == "auto" else machine.dtype]
        head, told = model.head_dim * item, f"{model.head_dim} x {item} B"
    num_kv_heads = math.ceil(model.num_kv_heads / machine.tensor_parallel)
    token_bytes = model.num_layers * 2 * num_kv_heads * head
    page_tokens = _page_tokens(machine)
    return (
        Size(
            "token",
            token_bytes,
            "B",
            f"{model.num_layers} layers x 2 (K and V) x {num_kv_heads} KV heads x {told}",
        ),
        Size("page", token_bytes * page_tokens, "B", f"{page_tokens} tokens x {token_bytes:,} B"),
    )


def _page_tokens(machine: Machine) -> int:
    default = CPU_PAGE_TOKENS if machine.gpu_gib is None else GPU_PAGE_TOKENS
    return machine.page_size or default


def _pages(machine: Machine, weights: Size, page: Size) -> Size:
    if machine.gpu_gib is None:
        memory, told = machine.kv_cache_gib * GIB, f"{machine.kv_cache_gib:g} GiB"
    else:
        taken = weights.value + machine.other_gib * GIB
        memory = machine.memory_fraction * machine.gpu_gib * GIB - taken
        told = (
            f"({machine.memory_fraction:g} x {machine.gpu_gib:g} GiB"
            f" - {weights.value / GIB:.2f} GiB - {machine.other_gib:g} GiB)"
        )
    num_pages = int(memory // page.value)
    if num_pages < 2:
        option = "--kv-cache-gib" if machine.gpu_gib is None else "--gpu-gib"
        left = max(0.0, memory) / GIB
        raise SettingsInvalid(
            f"{option}: {left:.2f} GiB are left for pages of {page.value / 2**20:.2f} MiB"
        )
    return Size("pages", num_pages, "", f"{told} / page")


def _jobs_at_once(machine: Machine, load: Load, pages: Size) -> Size:
    """Count the jobs whose pages fit; pages of a common beginning are there once."""
    page_tokens = _page_tokens(machine)
    # Page 0 is scratch.
    usable = int(pages.value) - 1
    usable -= int(usable * machine.reserve_fraction)
    shared = load.shared_tokens // page_tokens
    total = load.prompt_tokens + load.output_tokens
    own = math.ceil(total / page_tokens) - shared
    fitting = (usable - shared) // own
    if fitting < 1:
        raise SettingsInvalid(
            f"--prompt-tokens: one job needs {own + shared} pages and {usable} can be had"
        )
    return Size(
        "jobs at once",
        min(fitting, machine.max_num_seqs),
        "",
        f"min({machine.max_num_seqs} rows, ({usable:,} pages - {shared} shared) / {own} of a job)",
    )


def _flow(load: Load, jobs: Size) -> list[Size]:
    """Return what a worker does in time, as far as the load says how fast it is."""
    answer_s = load.output_tokens * load.gap_ms / 1000
    answer = Size(
        "answer", answer_s, "s", f"{load.output_tokens} tokens x {load.gap_ms:g} ms between them"
    )
    if load.tokens_per_s is None:
        return [answer]
    by_speed, by_pages = load.tokens_per_s / load.output_tokens, jobs.value / answer_s
    worker = Size(
        "jobs of a worker",
        min(by_speed, by_pages),
        "/s",
        f"min({load.tokens_per_s:g} tokens/s / {load.output_tokens},"
        f" {jobs.value:g} at once / {answer_s:g} s)",
    )
    users = Size(
        "users of a worker",
        math.floor(worker.value * (answer_s + load.think_s)),
        "",
        f"{worker.value:.2f} jobs/s x ({answer_s:g} s answer + {load.think_s:g} s pause)",
    )
    found = [answer, worker, users]
    if load.rate is not None:
        found.append(_workers(load, load.rate, worker.value))
    return found


def _workers(load: Load, rate: float, worker_jobs_per_s: float) -> Size:
    """Count the workers that do all jobs of a burst in its time and the wait that is allowed."""
    share, told = 1.0, ""
    if load.burst_s is not None:
        share = load.burst_s / (load.burst_s + load.wait_s)
        told = f" x {load.burst_s:g} s / ({load.burst_s:g} s + {load.wait_s:g} s)"
    return Size(
        "workers",
        math.ceil(rate * share / worker_jobs_per_s),
        "",
        f"{rate:g} jobs/s{told} / {worker_jobs_per_s:.2f}",
    )
