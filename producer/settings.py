"""Settings of a client, read once from arguments, `TOKENBUS_*` variables and the file.

The text below a setting says what it is, and `docs/settings.md` is made of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tokenbus.producer.config_file import ConfigFile, ConfigFileInvalid
from tokenbus.producer.errors import ClientSettingsInvalid

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_INVALID = (ValidationError, SettingsError, ConfigFileInvalid)


def setting_problem(error: ValidationError | SettingsError | ConfigFileInvalid) -> str:
    """Return one sentence that names the setting and quotes no value: it may be a secret."""
    if isinstance(error, ConfigFileInvalid):
        return str(error)
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
    # Where in the file its own settings stand.
    section: ClassVar[str] = "client"

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """URL of the server. It may hold a password and is shown without."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let arguments go before variables, and those before the file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _FileSource(settings_cls)

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read variables and file, `values` but None going first. Raises: `cls.invalid`."""
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})
        except _INVALID as error:
            problem = setting_problem(error)
        # Outside of the handler: what pydantic raised quotes values.
        raise cls.invalid(problem)


class _FileSource(PydanticBaseSettingsSource):
    """What the configuration file says for one kind of process."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what the file says of one field. Raises: ConfigFileInvalid."""
        del field
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the settings. Raises: ConfigFileInvalid."""
        found = ConfigFile.find()
        section: str = self.settings_cls.section  # type: ignore[attr-defined] # a subclass here
        return {} if found is None else found.given(section, self.settings_cls.model_fields)


class ClientSettings(BusSettings):
    """Settings of one client; times in seconds, the queue's bounds in tokens."""

    retry_for_s: float = Field(default=15.0, ge=0, le=3600)
    """How long a call goes on trying while the server is away, before it raises."""
    call_timeout_s: float = Field(default=5.0, gt=0, le=600)
    """How long one call on the server may take."""
    silence_s: float = Field(default=2.0, ge=0.05, le=4)
    """A stream that heard nothing for this long looks at its job. It stays well under the 5 s
    within which a lost job is reported."""
    max_buffered_tokens: int = Field(default=4096, ge=1, le=1_000_000)
    """Tokens that one stream holds back for a slow consumer; past it they are read from the log."""
    max_tenant_tokens: int = Field(default=20_000_000, ge=1)
    """Waiting tokens of a tenant (prompt plus `max_tokens` per choice) over which a submit is
    refused."""
    max_pool_tokens: int = Field(default=500_000_000, ge=1)
    """The same of the whole pool."""
    tenant_weights: dict[str, float] = Field(default_factory=dict)
    """Tenant to its weight, its share of a pool that is full; 1 where none is given."""
    refuse_late: bool = False
    """Refuse jobs at once that the backlog lets miss their deadline."""
    cache_groups: dict[str, list[str]] = Field(default_factory=dict)
    """Cache group to the tenants that share its pages without its secret, as the workers have it;
    here it only names the prefix by which a worker is found that has it cached."""
    result_ttl_s: float = Field(default=3600.0, gt=0, le=30 * 86_400)
    """How long the result of an ended job can be read."""
    log_ttl_s: float = Field(default=120.0, gt=0, le=30 * 86_400)
    """How long the log of a job stays that ended without a result in its place."""

    def __init__(self, **values: Any) -> None:
        """Read variables and file, `values` going first. Raises: ClientSettingsInvalid."""
        try:
            super().__init__(**values)
        except _INVALID as error:
            problem = setting_problem(error)
        else:
            return
        raise ClientSettingsInvalid(problem)
