"""Every tunable of a worker, read once from arguments and `TOKENBUS_*` variables."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.messages.engine import StartEngine

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class WorkerSettings(BaseSettings):
    """Settings of one worker; times in seconds, sizes in tokens or pages.

    The engine's own fields mean what they mean in `EngineConfig`; those left at None keep its
    defaults. `num_pages` and `max_num_seqs` apply to the null engine too.
    """

    model_config = SettingsConfigDict(env_prefix="TOKENBUS_", extra="forbid", frozen=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    pool: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")

    engine: Literal["paged", "null"] = "paged"
    model: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    page_size: int | None = Field(default=None, ge=1, le=1024)
    num_pages: int | None = Field(default=None, ge=2, le=2**31 - 1)
    memory_fraction: float | None = Field(default=None, ge=0.05, le=0.98)
    kv_cache_gib: float | None = Field(default=None, ge=0.001, le=4096)
    max_num_seqs: int | None = Field(default=None, ge=1, le=4096)
    max_model_len: int | None = Field(default=None, ge=2, le=2**24)
    max_batch_tokens: int | None = Field(default=None, ge=1, le=2**20)
    itl_target_ms: float | None = Field(default=None, ge=0.1, le=60_000)
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    prefix_cache: bool | None = None
    prefix_grouping: bool | None = None
    random_weights: bool | None = None
    cuda_graphs: bool | None = None
    quantization: Literal["int8", "int4"] | None = None
    null_tokens_per_s: float = Field(default=0.0, ge=0, le=1e6)
    null_total_tokens_per_s: float = Field(default=0.0, ge=0, le=1e9)
    null_crash_id: int | None = Field(default=None, ge=0)
    null_hang_id: int | None = Field(default=None, ge=0)
    null_fail_id: int | None = Field(default=None, ge=0)
    # A folder in which the engine process notes when it handed tokens over, for measuring.
    step_log: str | None = None

    lease_ttl_s: float = Field(default=5.0, ge=1, le=600)
    renew_interval_s: float = Field(default=1.0, ge=0.05, le=60)
    engine_start_timeout_s: Seconds = 1800.0
    engine_stall_s: float = Field(default=60.0, ge=1, le=3600)
    max_engine_restarts: int = Field(default=5, ge=0, le=1000)
    drain_deadline_s: float = Field(default=30.0, ge=0, le=86_400)
    connect_timeout_s: Seconds = 30.0
    outage_timeout_s: float = Field(default=300.0, ge=0, le=86_400)
    call_timeout_s: Seconds = 5.0
    suspect_wait_s: float = Field(default=10.0, ge=0, le=3600)
    hol_bypass_ms: int = Field(default=500, ge=0, le=600_000)
    # How long a job is left to another worker that has its prefix in the cache, where this one has
    # nothing else to do; 0 turns that off.
    affinity_wait_ms: int = Field(default=100, ge=0, le=600_000)
    # Processes that turn tokens into text and log entries; 0 leaves that to the worker process.
    publishers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = "auto"
    max_pull_jobs: int = Field(default=32, ge=1, le=1024)
    reserve_fraction: float = Field(default=0.02, ge=0, le=0.5)
    max_prompt_bytes: int = Field(default=8 * 1024 * 1024, ge=1, le=2**29)
    result_ttl_s: Seconds = 3600.0
    log_ttl_s: Seconds = 120.0

    # Prometheus metrics over HTTP; no port, no server. Who may reach the host sees them.
    metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    metrics_host: str = "127.0.0.1"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        """Leave room for two failed renewals inside a lease."""
        if self.renew_interval_s * 3 > self.lease_ttl_s:
            raise ValueError(
                f"renew_interval_s: three of {self.renew_interval_s:g} s do not fit into "
                f"lease_ttl_s {self.lease_ttl_s:g} s"
            )
        return self

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the environment, `values` that are not None going first.

        Raises: SettingsInvalid, one sentence that names the setting.
        """
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise SettingsInvalid(f"{field}: {message}" if field else message) from None

    @property
    def holds_prefixes(self) -> bool:
        """Tell whether the engine keeps the pages of prompts for others that begin alike."""
        return self.engine == "paged" and self.prefix_cache is not False

    @property
    def affinity_ms(self) -> int:
        """Return `affinity_wait_ms`, 0 for an engine that holds no prefixes."""
        return self.affinity_wait_ms if self.holds_prefixes else 0

    def start_engine(self) -> StartEngine:
        """Return the message that builds this worker's engine."""
        if self.engine == "null":
            return StartEngine(null=self._null_config(), step_log=self.step_log)
        names = (
            "page_size",
            "num_pages",
            "memory_fraction",
            "kv_cache_gib",
            "max_num_seqs",
            "max_model_len",
            "max_batch_tokens",
            "itl_target_ms",
            "num_threads",
            "prefix_cache",
            "prefix_grouping",
            "random_weights",
            "cuda_graphs",
            "quantization",
        )
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return StartEngine(
            engine=EngineConfig(model=self.model, dtype=self.dtype, device=self.device, **given),
            step_log=self.step_log,
        )

    def _null_config(self) -> NullConfig:
        names = ("page_size", "num_pages", "max_num_seqs", "max_model_len")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return NullConfig(
            tokens_per_s=self.null_tokens_per_s,
            total_tokens_per_s=self.null_total_tokens_per_s,
            crash_id=self.null_crash_id,
            hang_id=self.null_hang_id,
            fail_id=self.null_fail_id,
            **given,
        )
