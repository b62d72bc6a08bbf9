"""Puts an engine together: model, pages, rows, scheduler."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.engine import Engine
from tokenbus.engine.errors import ModelUnsupported, RequestRejected
from tokenbus.engine.execution.constrained import ConstrainedRows
from tokenbus.engine.execution.graph_runner import GraphRunner
from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.execution.runner import Runner
from tokenbus.engine.kv_cache import KVCache
from tokenbus.engine.models.hf_generic import GenericModel
from tokenbus.engine.models.native_ops import NativeOps
from tokenbus.engine.native_library import native_library
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.types import EngineLimits
from tokenbus.engine.weights.loader import choose_device, load_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.interfaces import PagedAttention
    from tokenbus.engine.models.ops import Ops
    from tokenbus.engine.weights.loader import LoadedModel

    Progress = Callable[[int, int], None]

# Tokens per page. A GPU kernel wants one long contiguous tile; on a CPU small pages share more.
_PAGE_SIZE = {"cuda": 64, "cpu": 16}


def build_engine(config: EngineConfig, progress: Progress | None = None) -> Engine:
    """Load the model of a configuration and build an engine around it.

    `progress` is called with (done, total) while graphs are captured, which takes seconds.
    Raises: ModelNotFound, ModelBroken or ModelUnsupported; RequestRejected for a setting that does
        not fit the model or the memory.
    """
    return engine_for(load_for(config), config, progress)


def load_for(config: EngineConfig) -> LoadedModel:
    """Load the model of a configuration with the fastest backends of its device.

    Raises: ModelNotFound, ModelBroken or ModelUnsupported.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    attention: PagedAttention | None = None
    ops: Callable[[PagedAttention], Ops] | None = None
    if choose_device(config.device).type == "cuda":
        # Imported on use: without a GPU, Triton may be missing or have no driver.
        from tokenbus.engine.attention.triton_attention import TritonAttention
        from tokenbus.engine.models.triton_ops import TritonOps

        attention = TritonAttention(config.max_num_seqs, grouping=config.prefix_grouping)
        ops = TritonOps
    elif config.quantization is not None:
        attention, ops = _quantized_backends(config.quantization)
    if config.quantization is not None and not isinstance(attention, NativeAttention):
        raise RequestRejected("quantization", f"{config.quantization} weights are for CPUs only")
    loaded = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        random_weights=config.random_weights,
        max_model_len=config.max_model_len,
        attention=attention,
        ops=ops,
    )
    if config.quantization is not None and isinstance(loaded.model, GenericModel):
        raise ModelUnsupported(
            f"{config.model} runs in transformers' code, which has no {config.quantization}"
        )
    return loaded


def _quantized_backends(
    quantization: str,
) -> tuple[PagedAttention, Callable[[PagedAttention], Ops]]:
    library = native_library()
    if library is None:
        raise RequestRejected("quantization", f"{quantization} weights need the compiled kernels")
    return NativeAttention(library), partial(NativeOps, quantization=quantization)


def engine_for(
    loaded: LoadedModel, config: EngineConfig, progress: Progress | None = None
) -> Engine:
    """Build an engine around a model that is in memory already; see `build_engine`."""
    device, specs = loaded.device, loaded.model.attention_specs
    page_size = config.page_size or _PAGE_SIZE.get(device.type, 16)
    max_model_len = config.max_model_len or loaded.max_model_len
    if max_model_len > loaded.max_model_len:
        raise RequestRejected(
            "max_model_len", f"{max_model_len} tokens, the model ends at {loaded.max_model_len}"
        )
    num_pages = config.num_pages or _pages_in_memory(loaded, config, page_size)
    kv = KVCache(specs, num_pages, page_size, loaded.dtype, device)
    max_pages = min(num_pages, -(-max_model_len // page_size))
    rows = RowState(config.max_num_seqs, max_pages, device)
    sampling = SamplingState(
        config.max_num_seqs, loaded.model.vocab_size, device, loaded.eos_token_ids
    )
    sharing = _sharing(loaded) if config.prefix_grouping else None
    runner = Runner(loaded.model, kv, sampling, rows, sharing=sharing)
    if device.type == "cuda" and config.cuda_graphs:
        graphs = GraphRunner(
            loaded.model,
            kv,
            sampling,
            rows,
            sharing=sharing,
            max_batch_tokens=config.max_batch_tokens,
        )
        graphs.warm_up(progress)
        runner = graphs
    pool = PagePool(num_pages, page_size)
    target_s = None if config.itl_target_ms is None else config.itl_target_ms / 1000
    scheduler = Scheduler(
        pool,
        ChunkSizer(config.max_batch_tokens, target_s),
        max_num_seqs=config.max_num_seqs,
        prefix_cache=config.prefix_cache,
        on_release=runner.release,
    )
    limits = EngineLimits(
        model=loaded.name,
        num_pages=num_pages,
        page_size=page_size,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=loaded.eos_token_ids,
        vocab_size=loaded.model.vocab_size,
    )
    constrained = ConstrainedRows(loaded.tokenizer, limits.vocab_size, limits.eos_token_ids)
    return Engine(runner, scheduler, constrained, limits, one_step_ahead=device.type == "cuda")


def _sharing(loaded: LoadedModel) -> PrefixSharing | None:
    """Return the attention backend if it can read shared runs together."""
    return loaded.attention if isinstance(loaded.attention, PrefixSharing) else None


def _pages_in_memory(loaded: LoadedModel, config: EngineConfig, page_size: int) -> int:
    page_bytes = KVCache.page_bytes(loaded.model.attention_specs, page_size, loaded.dtype)
    if loaded.device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(loaded.device)
        budget_bytes = free_bytes - (1 - config.memory_fraction) * total_bytes
    else:
        budget_bytes = config.kv_cache_gib * 2**30
    num_pages = int(budget_bytes // page_bytes)
    if num_pages < 2:
        raise RequestRejected(
            "num_pages",
            f"a page takes {page_bytes} bytes and {max(0, int(budget_bytes))} are left for pages",
        )
    return num_pages
