"""How an engine is built: every tunable in one place, in tokens, pages and milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tokenbus.engine.errors import RequestRejected


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; None means "chosen at start-up from the device and the model".

    Attributes:
        model: local folder, hub id or alias of the model store.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu or cuda[:index].
        page_size: tokens per page (None: 16 on a CPU, 64 on a GPU).
        num_pages: pages of the pool, scratch page included (None: from free memory).
        memory_fraction: share of the device's memory that weights and pages may take together.
        kv_cache_gib: pages in GiB on a CPU, where free memory is not ours alone.
        max_num_seqs: rows, hence the largest batch.
        max_model_len: longest prompt plus output in tokens (None: the model's own limit).
        max_batch_tokens: prompt tokens per step when nobody is streaming.
        itl_target_ms: longest step while somebody is streaming (None: no target).
        prefix_cache: share pages between sequences with the same prefix and salt.
        prefix_grouping: let decoding sequences with the same pages read these once for all of them.
        random_weights: ignore weight files and draw weights (benchmarks).
        num_threads: compute threads on a CPU (None: torch's choice).
        cuda_graphs: capture steps on a GPU: decode steps, and those with few prompt tokens.
        quantization: on a CPU, int8 rounds weights to a byte with a scale per output, int4 those of
            the layers to 4 bits with a scale and an offset per 32 inputs (None: off).
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    page_size: int | None = None
    num_pages: int | None = None
    memory_fraction: float = 0.9
    kv_cache_gib: float = 2.0
    max_num_seqs: int = 256
    max_model_len: int | None = None
    max_batch_tokens: int = 8192
    itl_target_ms: float | None = None
    prefix_cache: bool = True
    prefix_grouping: bool = True
    random_weights: bool = False
    num_threads: int | None = None
    cuda_graphs: bool = True
    quantization: str | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their bounds by the field's name."""
        if self.quantization not in (None, "int8", "int4"):
            raise RequestRejected("quantization", f"{self.quantization} is not int8 or int4")
        bounds: dict[str, tuple[float, float]] = {
            "page_size": (1, 1024),
            "num_pages": (2, 2**31 - 1),
            "memory_fraction": (0.05, 0.98),
            "kv_cache_gib": (0.001, 4096),
            "max_num_seqs": (1, 4096),
            "max_model_len": (2, 2**24),
            "max_batch_tokens": (1, 2**20),
            "itl_target_ms": (0.1, 60_000),
            "num_threads": (1, 1024),
        }
        for item in fields(self):
            if item.name not in bounds:
                continue
            value = getattr(self, item.name)
            low, high = bounds[item.name]
            if value is not None and not low <= value <= high:
                raise RequestRejected(item.name, f"{value} is outside {low}…{high}")
