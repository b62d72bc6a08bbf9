"""Settings of a client, read once from arguments and `TOKENBUS_*` variables."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from tokenbus.producer.errors import ClientSettingsInvalid


def setting_problem(error: ValidationError | SettingsError) -> str:
    """Return one sentence that names the setting and quotes no value: it may be a secret."""
    if isinstance(error, SettingsError):
        # A variable that has to be JSON and is not.
        return f"{error}: it has to be JSON"
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


class BusSettings(BaseSettings):
    """What all settings share: where the server is, and how they are read.

    A variable that is empty counts as one that is not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="TOKENBUS_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )
    # What is raised for settings that are wrong, with one sentence that names the setting.
    invalid: ClassVar[type[Exception]] = ClientSettingsInvalid

    # Not shown: it may hold a password.
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the environment, `values` that are not None going first. Raises: `cls.invalid`."""
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})
        except (ValidationError, SettingsError) as error:
            problem = setting_problem(error)
        # Outside of the handler: what pydantic raised quotes values.
        raise cls.invalid(problem)


class ClientSettings(BusSettings):
    """Settings of one client; times in seconds, the queue's bounds in tokens."""

    # How long a call goes on trying while the server is away, before it raises.
    retry_for_s: float = Field(default=15.0, ge=0, le=3600)
    call_timeout_s: float = Field(default=5.0, gt=0, le=600)
    # A stream that heard nothing for this long looks at the job; must stay well under the 5 s
    # within which a lost job is reported.
    silence_s: float = Field(default=2.0, ge=0.05, le=4)
    # Tokens that one stream holds back for a slow consumer; past it they are read from the log.
    max_buffered_tokens: int = Field(default=4096, ge=1, le=1_000_000)
    # Waiting tokens (prompt plus max_tokens per choice) over which submit is refused.
    max_tenant_tokens: int = Field(default=20_000_000, ge=1)
    max_pool_tokens: int = Field(default=500_000_000, ge=1)
    tenant_weights: dict[str, float] = Field(default_factory=dict)
    refuse_late: bool = False
    # The owner's list of cache groups, as the workers have it: here it only names the prefix by
    # which a worker that has it cached is found.
    cache_groups: dict[str, list[str]] = Field(default_factory=dict)
    result_ttl_s: float = Field(default=3600.0, gt=0, le=30 * 86_400)
    log_ttl_s: float = Field(default=120.0, gt=0, le=30 * 86_400)

    def __init__(self, **values: Any) -> None:
        """Read the environment, `values` going first. Raises: ClientSettingsInvalid."""
        try:
            super().__init__(**values)
        except (ValidationError, SettingsError) as error:
            problem = setting_problem(error)
        else:
            return
        raise ClientSettingsInvalid(problem)
