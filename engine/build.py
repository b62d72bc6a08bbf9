"""The engine's construction: model, pages, rows, scheduler."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.backends import choose_backend
from tokenbus.engine.engine import Engine
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.execution.constrained import ConstrainedRows
from tokenbus.engine.execution.graph_runner import GraphRunner
from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.execution.runner import Runner
from tokenbus.engine.kv_cache import KVCache
from tokenbus.engine.parallel.group import ALONE, RankGroup
from tokenbus.engine.parallel.leading import lead
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.speculation.planner import DraftPlanner
from tokenbus.engine.text.templates.chat_settings import read_chat_template
from tokenbus.engine.types import NO_DEFAULTS, EngineLimits
from tokenbus.engine.weights.loader import load_model
from tokenbus.engine.weights.readers import choose_reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.types import SamplingDefaults
    from tokenbus.engine.weights.loader import LoadedModel
    from tokenbus.engine.weights.model_store import Progress
    from tokenbus.engine.weights.readers import WeightReader


_log = logging.getLogger(__name__)


def build_engine(config: EngineConfig, progress: Progress | None = None) -> Engine:
    """Load the model of a configuration and build an engine around it.

    `progress` is called with what is going on, such as that weights are read or graphs captured,
    and the share of that which is done, 0 to 1.
    Raises: ModelNotFound, ModelBroken or ModelUnsupported; RequestRejected for a setting that does
        not fit the device, the model or the memory.
    """
    return engine_for(load_for(config, progress=progress), config, progress)


def load_for(
    config: EngineConfig,
    backend: Backend | None = None,
    reader: WeightReader | None = None,
    progress: Progress | None = None,
    group: RankGroup | None = None,
) -> LoadedModel:
    """Load the model of a configuration, or one rank's part of it.

    `backend` runs it, by default the fastest of its device; `reader` makes its weights, by default
    as `quantization` asks; `group` is that of the rank, by default one that is started for as many
    ranks as `tensor_parallel` asks for, of which this one is rank 0.
    Raises: ModelNotFound, ModelBroken or ModelUnsupported; RequestRejected for a setting that the
        backend cannot carry out.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if backend is not None:
        group = backend.group
    elif group is None:
        group = lead(config, progress) if config.tensor_parallel > 1 else ALONE
    try:
        if backend is None:
            if progress is not None:
                progress("preparing the device", 0.0)
            backend = choose_backend(config, group)
        loaded = _load(config, backend, reader, progress)
        group.loaded()
    except BaseException:
        group.close()
        raise
    return loaded


def _load(
    config: EngineConfig,
    backend: Backend,
    reader: WeightReader | None,
    progress: Progress | None,
) -> LoadedModel:
    backend.check(config)
    template = config.chat_template
    return load_model(
        config.model,
        backend,
        dtype=config.dtype,
        random_weights=config.random_weights,
        max_model_len=config.max_model_len,
        chat_template=None if template is None else read_chat_template(template),
        reader=reader or choose_reader(config.quantization, grouped=backend.groups_int4),
        progress=progress,
    )


def engine_for(
    loaded: LoadedModel, config: EngineConfig, progress: Progress | None = None
) -> Engine:
    """Build an engine around a model that is in memory already; see `build_engine`."""
    try:
        return _engine_for(loaded, config, progress)
    except BaseException:
        loaded.backend.group.close()
        raise


def runner_for(
    loaded: LoadedModel,
    config: EngineConfig,
    sampling: SamplingState,
    progress: Progress | None = None,
) -> Runner:
    """Build the pages, rows and runner of one rank; all ranks of a group do so together.

    `sampling` is what it draws by, rank 0's own on that rank alone.
    """
    backend, specs = loaded.backend, loaded.model.attention_specs
    device = backend.device
    page_size = config.page_size or backend.page_size
    kv_dtype = backend.kv_dtype(loaded.dtype)
    page_bytes = KVCache.page_bytes(specs, page_size, kv_dtype)
    num_pages = config.num_pages or _pages_in_memory(backend, config, page_bytes)
    kv = KVCache(specs, num_pages, page_size, kv_dtype, device)
    max_pages = min(num_pages, -(-_max_model_len(loaded, config) // page_size))
    rows = RowState(config.max_num_seqs, max_pages, device, narrow_tables=backend.narrow_tables)
    sharing = backend.sharing if config.prefix_grouping else None
    parts = loaded.model, kv, sampling, rows
    if not (backend.captures_steps and config.cuda_graphs):
        return Runner(*parts, sharing=sharing, group=backend.group)
    graphs = GraphRunner(
        *parts,
        sharing=sharing,
        group=backend.group,
        max_batch_tokens=config.max_batch_tokens,
        has_drafts=config.speculation == "auto",
    )
    graphs.warm_up(progress and _capturing(progress))
    return graphs


def _engine_for(loaded: LoadedModel, config: EngineConfig, progress: Progress | None) -> Engine:
    backend = loaded.backend
    sampling = SamplingState(
        config.max_num_seqs, loaded.model.vocab_size, backend.device, loaded.eos_token_ids
    )
    runner = runner_for(loaded, config, sampling, progress)
    num_pages, page_size = runner.kv.num_pages, runner.kv.page_size
    pool = PagePool(num_pages, page_size)
    target_s = None if config.itl_target_ms is None else config.itl_target_ms / 1000
    scheduler = Scheduler(
        pool,
        ChunkSizer(config.max_batch_tokens, target_s),
        max_num_seqs=config.max_num_seqs,
        prefix_cache=config.prefix_cache,
        on_release=runner.release,
    )
    limits = _limits(loaded, config, num_pages, page_size, _max_model_len(loaded, config))
    constrained = ConstrainedRows(loaded.tokenizer, limits, runner.containment, config)
    planner = DraftPlanner(config.speculation_group_bytes)
    return Engine(
        runner,
        scheduler,
        constrained,
        limits,
        one_step_ahead=backend.runs_ahead,
        speculation=planner if config.speculation == "auto" else None,
    )


def _limits(
    loaded: LoadedModel, config: EngineConfig, num_pages: int, page_size: int, max_model_len: int
) -> EngineLimits:
    return EngineLimits(
        model=loaded.name,
        num_pages=num_pages,
        page_size=page_size,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=loaded.eos_token_ids,
        vocab_size=loaded.model.vocab_size,
        sampling_defaults=_sampling_defaults(loaded, config),
        checkpoint=loaded.checkpoint,
    )


def _sampling_defaults(loaded: LoadedModel, config: EngineConfig) -> SamplingDefaults:
    """Return what holds where requests say nothing, and tell of it."""
    defaults = loaded.sampling_defaults
    if config.generation_config == "none":
        return NO_DEFAULTS
    if told := defaults.given():
        shown = ", ".join(f"{name} {value:g}" for name, value in told.items())
        _log.info("sampling.defaults: %s where a request says nothing", shown)
    return defaults


def _capturing(progress: Progress) -> Callable[[int, int], None]:
    """Return what counts captured graphs, of how many, as progress."""
    return lambda done, total: progress("capturing graphs", done / max(1, total))


def _max_model_len(loaded: LoadedModel, config: EngineConfig) -> int:
    """Return how many tokens a sequence may have. Raises: RequestRejected."""
    wanted = config.max_model_len or loaded.max_model_len
    if wanted > loaded.max_model_len:
        raise RequestRejected(
            "max_model_len", f"{wanted} tokens, the model ends at {loaded.max_model_len}"
        )
    return wanted


def _pages_in_memory(backend: Backend, config: EngineConfig, page_bytes: int) -> int:
    budget_bytes = backend.page_memory_bytes(config)
    # A page is a page on every rank: the one with the least room counts.
    num_pages = backend.group.collective.smallest(int(budget_bytes // page_bytes), backend.device)
    if num_pages < 2:
        raise RequestRejected(
            "num_pages",
            f"a page takes {page_bytes} bytes and {max(0, int(budget_bytes))} are left for pages",
        )
    return num_pages
