"""Settings of a worker, read once from arguments and `TOKENBUS_*` variables."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import Field, create_model, model_validator

from tokenbus.engine.chat.requests.request_rules import model_names
from tokenbus.engine.config import EngineConfig, EngineSetting, engine_settings
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.worker.service_settings import ServiceSettings

if TYPE_CHECKING:
    from tokenbus.engine.text.templates.chat_settings import ChatSettings

Seconds = Annotated[float, Field(gt=0, le=86_400)]
T = TypeVar("T", bound=ServiceSettings)
_ENGINE = engine_settings()


def _with_engine_settings(settings: type[T]) -> type[T]:
    """Add the engine's settings under their names, with their bounds."""
    added: Any = {name: _field(setting) for name, setting in _ENGINE.items()}
    made: type[T] = create_model(
        settings.__name__,
        __base__=settings,
        __module__=settings.__module__,
        __doc__=settings.__doc__,
        **added,
    )
    return made


def _field(setting: EngineSetting) -> tuple[Any, Any]:
    """Return type and default of a setting; None leaves it to the engine, as a text does itself."""
    kind: Any = setting.kind if setting.choices is None else Literal[setting.choices]
    if isinstance(setting.default, str):
        return kind, setting.default
    if setting.bounds is None:
        return kind | None, None
    low, high = setting.bounds
    return kind | None, Field(default=None, ge=low, le=high)


@_with_engine_settings
class WorkerSettings(ServiceSettings):
    """Settings of one worker; times in seconds, sizes in tokens or pages.

    The fields of `EngineConfig` are settings too and mean what they mean there; those left at None
    keep its defaults. The null engine takes its sizes from the same names.
    """

    section: ClassVar[str] = "worker"

    engine: Literal["paged", "null"] = "paged"
    """`null` makes tokens up, with real page accounting: for load and failure tests."""
    model: str = "smollm2-135m"
    """Alias, local folder, GGUF file or hub id of the model."""
    served_model_name: list[str] = Field(default_factory=list)
    """Other names under which requests may ask for the model."""
    replicas: int = Field(default=1, ge=1, le=64)
    """Workers that the command starts on this host, each with a GPU or a share of the cores."""
    null_tokens_per_s: float = Field(default=0.0, ge=0, le=1e6)
    """Pace of the null engine per sequence; 0 is as fast as it goes."""
    null_total_tokens_per_s: float = Field(default=0.0, ge=0, le=1e9)
    """Pace of the null engine for all sequences together; 0 is as fast as it goes."""
    null_crash_id: int | None = Field(default=None, ge=0)
    """Token of a prompt at which the null engine dies."""
    null_crash_at_index: int = Field(default=0, ge=0)
    """It dies only once the first choice has so many tokens."""
    null_crash_after_tokens: int = Field(default=0, ge=0)
    """It dies only so many tokens after each start of the job."""
    null_crash_with_id: int | None = Field(default=None, ge=0)
    """It dies only beside a prompt with this token."""
    null_hang_id: int | None = Field(default=None, ge=0)
    """Token of a prompt at which the null engine hangs."""
    null_fail_id: int | None = Field(default=None, ge=0)
    """Token of a prompt at which the null engine fails that request alone."""
    step_log: str | None = None
    """Folder in which the engine process notes when it handed tokens over, for measuring."""

    renew_interval_s: float = Field(default=1.0, ge=0.05, le=60)
    """Between two renewals of the lease; three fit into `lease_ttl_s`."""
    engine_start_timeout_s: Seconds = 1800.0
    """How long an engine may take to start, download of the model included."""
    engine_stall_s: float = Field(default=60.0, ge=1, le=3600)
    """An engine that takes no step for so long counts as hung."""
    max_engine_restarts: int = Field(default=5, ge=0, le=1000)
    """Engines that may die in a row, with no job to blame, before the log calls them failing."""
    drain_deadline_s: float = Field(default=30.0, ge=0, le=86_400)
    """How long a worker that is told to stop lets jobs end before it hands them back."""
    connect_timeout_s: Seconds = 30.0
    """How long the start waits for the server."""
    call_timeout_s: Seconds = 5.0
    """How long one call on the server may take."""
    suspect_wait_s: float = Field(default=10.0, ge=0, le=3600)
    """How long a worker waits to be empty for a job that may have killed an engine."""
    hol_bypass_ms: int = Field(default=500, ge=0, le=600_000)
    """How long smaller jobs pass one that waits for pages."""
    affinity_wait_ms: int = Field(default=100, ge=0, le=600_000)
    """How long a job is left to another worker that has its prefix in the cache, where this one
    has nothing else to do; 0 turns that off."""
    publishers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = "auto"
    """Processes that turn tokens into text and log entries; 0 leaves that to the worker process,
    `auto` goes by cores and load."""
    max_pull_jobs: int = Field(default=32, ge=1, le=1024)
    """Jobs of one pull at most."""
    reserve_fraction: float = Field(default=0.02, ge=0, le=0.5)
    """Share of the pages that no pull counts on."""
    cache_groups: dict[str, list[str]] = Field(default_factory=dict)
    """Cache group to the tenants that share its pages without its secret."""
    dead_letter_bytes: int = Field(default=32 * 1024 * 1024, ge=1024 * 1024, le=2**40)
    """What the pool's dead letters may take together; the worker that started last decides."""
    max_prompt_bytes: int = Field(default=8 * 1024 * 1024, ge=1, le=2**29)
    """The longest raw entry of the inbox."""
    result_bytes: int = Field(default=256 * 1024 * 1024, ge=0, le=2**50)
    """What finished jobs of the pool may take of the server's memory: past it the oldest results
    are dropped before their time. 0 bounds nothing."""
    tenant_result_bytes: int = Field(default=64 * 1024 * 1024, ge=0, le=2**50)
    """The same of each tenant."""
    result_ttl_s: Seconds = 3600.0
    """How long the result of an ended job can be read."""
    log_ttl_s: Seconds = 120.0
    """How long the log of a job stays that ended without a result in its place."""

    @model_validator(mode="after")
    def _check_lease(self) -> Self:
        """Leave room for two failed renewals inside a lease."""
        if self.renew_interval_s * 3 > self.lease_ttl_s:
            raise ValueError(
                f"renew_interval_s: three of {self.renew_interval_s:g} s do not fit into "
                f"lease_ttl_s {self.lease_ttl_s:g} s"
            )
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names under which requests may ask for the model."""
        return model_names(self.model, self.served_model_name)

    @property
    def holds_prefixes(self) -> bool:
        """Tell whether the engine keeps the pages of prompts for others that begin alike."""
        return self.engine == "paged" and self._engine_values().get("prefix_cache") is not False

    @property
    def affinity_ms(self) -> int:
        """Return `affinity_wait_ms`, 0 for an engine that holds no prefixes."""
        return self.affinity_wait_ms if self.holds_prefixes else 0

    def engine_config(self) -> EngineConfig | NullConfig:
        """Return what this worker's engine is built from."""
        if self.engine == "null":
            return self._null_config()
        return EngineConfig(model=self.model, **self._engine_values())

    def chat_settings(self) -> ChatSettings:
        """Return the settings that chats depend on: those of the engine, which are fields here."""
        return cast("ChatSettings", self)

    def _engine_values(self) -> dict[str, Any]:
        """Return the engine's settings that are set."""
        values = ((name, getattr(self, name)) for name in _ENGINE)
        return {name: value for name, value in values if value is not None}

    def _null_config(self) -> NullConfig:
        known = {item.name for item in fields(NullConfig)}
        given = {name: value for name, value in self._engine_values().items() if name in known}
        return NullConfig(
            tokens_per_s=self.null_tokens_per_s,
            total_tokens_per_s=self.null_total_tokens_per_s,
            crash_id=self.null_crash_id,
            crash_at_index=self.null_crash_at_index,
            crash_after_tokens=self.null_crash_after_tokens,
            crash_with_id=self.null_crash_with_id,
            hang_id=self.null_hang_id,
            fail_id=self.null_fail_id,
            **given,
        )
