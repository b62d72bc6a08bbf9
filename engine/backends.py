"""The backends there are, and which one a configuration gets: Triton, compiled kernels, torch."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.kv_cache import FP8_PAGES
from tokenbus.engine.models.backend import Backend
from tokenbus.engine.models.native.native_experts import NativeMixture, native_mixtures
from tokenbus.engine.models.native_ops import NativeOps
from tokenbus.engine.models.ops import TorchOps
from tokenbus.engine.models.packed_ops import PackedOps
from tokenbus.engine.native_library import native_library
from tokenbus.engine.parallel.group import ALONE, RankGroup
from tokenbus.engine.parallel.topology import device_of_rank
from tokenbus.engine.sampling.plan import MAX_DRAFTED_ROWS, MAX_FORCED_ROWS

if TYPE_CHECKING:
    from tokenbus.engine.attention.triton_attention import TritonAttention
    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.ops import Ops
    from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonBackend(Backend):
    """A GPU of CUDA by Triton kernels.

    kv_cache_dtype: of the pages: auto, bf16 or fp8.
    """

    attention: TritonAttention
    kv_cache_dtype: str = "auto"
    # A kernel wants one long contiguous tile.
    page_size: int = 64
    captures_steps: bool = True
    runs_ahead: bool = True
    narrow_tables: bool = False
    has_device_clock: bool = True
    groups_int4: bool = True

    @property
    def sharing(self) -> PrefixSharing:
        """Return the attention."""
        return self.attention

    def check(self, config: EngineConfig) -> None:
        """Refuse weights rounded to bytes; for float8 and four bits the ops tell what they have."""
        if config.quantization == "int8":
            _refuse_quantization(config, "are for CPUs only")

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:  # noqa: ARG002
        """Return the fused steps."""
        from tokenbus.engine.models.triton_ops import TritonOps

        ops = TritonOps(self.attention)
        ops.ranks = self.group.collective
        return ops

    def weights_dtype(self, stored: torch.dtype | None) -> torch.dtype:
        """Return the checkpoint's own dtype."""
        return stored or torch.bfloat16

    def kv_dtype(self, weights: torch.dtype) -> torch.dtype:
        """Return FP8 if that is asked for, else the dtype of the weights."""
        if self.kv_cache_dtype == "fp8":
            return FP8_PAGES
        if self.kv_cache_dtype == "bf16" and weights != torch.bfloat16:
            raise RequestRejected("kv_cache_dtype", f"bf16 pages need bf16 weights, not {weights}")
        return weights

    def page_memory_bytes(self, config: EngineConfig) -> float:
        """Return what is left of the device's memory of the share that the engine may take."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
        return free_bytes - (1 - config.memory_fraction) * total_bytes

    def describe(self) -> dict[str, str]:
        """Name the GPU and the version of Triton."""
        import triton

        return {
            "device": torch.cuda.get_device_name(self.device),
            "triton": triton.__version__,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBackend(Backend):
    """Plain torch on any device: the CPU's without a compiler."""

    @property
    def sharing(self) -> PrefixSharing | None:
        """Return None: gathered pages are read per row."""
        return None

    def check(self, config: EngineConfig) -> None:
        """Refuse rounded pages and weights; weights of float8 are kept as numbers of torch."""
        _refuse_rounded_pages(config)
        if config.quantization == "fp8":
            return
        on_cpu = self.device.type == "cpu"
        _refuse_quantization(config, "need the compiled kernels" if on_cpu else "are for CPUs only")

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:
        """Return steps over packed weights where torch can pack them."""
        del shape
        packs = PackedOps.supports(dtype, self.device)
        ops = (PackedOps if packs else TorchOps)(self.attention)
        ops.ranks = self.group.collective
        return ops

    def weights_dtype(self, stored: torch.dtype | None) -> torch.dtype:
        """Return bfloat16 or float32 on a CPU, elsewhere the checkpoint's own dtype."""
        if self.device.type == "cpu":
            return _cpu_dtype(stored)
        return stored or torch.bfloat16

    def page_memory_bytes(self, config: EngineConfig) -> float:
        """Return the setting: free memory is not the engine's alone."""
        return config.kv_cache_gib * 2**30

    def describe(self) -> dict[str, str]:
        """Name the processor."""
        return {"device": platform.processor() or platform.machine()}


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeBackend(TorchBackend):
    """A CPU by kernels compiled for it."""

    attention: NativeAttention

    @property
    def sharing(self) -> PrefixSharing:
        """Return the attention."""
        return self.attention

    def check(self, config: EngineConfig) -> None:
        """Refuse rounded pages, and weights rounded to whole numbers in half precision."""
        _refuse_rounded_pages(config)
        if config.dtype == "float16" and config.quantization != "fp8":
            _refuse_quantization(config, "are not for float16")

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> Ops:
        """Return the compiled layers; steps in torch for a shape that they do not cover."""
        # Compiled layers have no place at which ranks could sum.
        if self.group.collective.size == 1 and NativeOps.supports(shape, dtype):
            return NativeOps(self.attention)
        ops = TorchBackend.ops(self, shape, dtype)
        if isinstance(ops, TorchOps) and NativeMixture.supports(shape, dtype):
            ops.mixture_binder = native_mixtures(self.attention.library)
        return ops


def choose_backend(config: EngineConfig, group: RankGroup = ALONE) -> Backend:
    """Return the fastest backend of the device that a configuration names, for a rank of a group.

    Raises: RequestRejected if the configuration has no device for the rank.
    """
    device = device_of_rank(config, group.collective.rank)
    if device.type == "cuda":
        # Imported on use: without a GPU, Triton may be missing or have no driver.
        from tokenbus.engine.attention.triton_attention import TritonAttention

        few_rows = MAX_DRAFTED_ROWS if config.speculation == "auto" else MAX_FORCED_ROWS
        num_rows = max(config.max_num_seqs, few_rows)
        attention = TritonAttention(num_rows, grouping=config.prefix_grouping)
        return TritonBackend(
            device=device,
            attention=attention,
            kv_cache_dtype=config.kv_cache_dtype,
            group=group,
        )
    # The compiled kernels know no half precision, and torch rounds no weights.
    if device.type == "cpu" and (config.dtype != "float16" or config.quantization is not None):
        library = native_library()
        if library is not None:
            return NativeBackend(device=device, attention=NativeAttention(library), group=group)
    return TorchBackend(device=device, attention=TorchAttention(), group=group)


def _refuse_quantization(config: EngineConfig, reason: str) -> None:
    if config.quantization is not None:
        raise RequestRejected("quantization", f"{config.quantization} weights {reason}")


def _refuse_rounded_pages(config: EngineConfig) -> None:
    if config.kv_cache_dtype != "auto":
        raise RequestRejected("kv_cache_dtype", f"{config.kv_cache_dtype} pages are for GPUs only")


def _cpu_dtype(stored: torch.dtype | None) -> torch.dtype:
    """Return bfloat16 for narrow checkpoints where the processor multiplies it, else float32."""
    narrow = stored in (torch.bfloat16, torch.float16)
    native = PackedOps.supports(torch.bfloat16, torch.device("cpu"))
    return torch.bfloat16 if narrow and native else torch.float32
