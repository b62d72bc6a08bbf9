"""The configuration file: settings in TOML, for all processes of a deployment.

`TOKENBUS_CONFIG` names it, or `tokenbus --config FILE`; no other place is looked at. Settings at
its top are for every process that has one of the name; those in a section, `[worker]`, `[gateway]`,
`[control]` or `[client]`, are for that one and go first. Variables of the environment go before the
file, options of the command line before both.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_PREFIX = "TOKENBUS_"
CONFIG_VARIABLE = f"{_PREFIX}CONFIG"
# A letter or two of a setting's name: MAX_NUM_SEQ, REDIS_URI. What is further off may be somebody's
# own variable.
_LIKENESS = 0.85
SECTIONS = ("client", "worker", "gateway", "control")


class ConfigFileInvalid(ValueError):
    """The configuration file cannot be read, or says what nobody understands."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a configuration file says."""

    path: str
    values: Mapping[str, Any]

    @classmethod
    def find(cls) -> ConfigFile | None:
        """Read the file that the environment names; None where it names none.

        Raises: ConfigFileInvalid.
        """
        path = os.environ.get(CONFIG_VARIABLE)
        if not path:
            return None
        try:
            found = Path(path).stat()
        except OSError as error:
            raise ConfigFileInvalid(f"{CONFIG_VARIABLE}: {path}: {error.strerror}") from None
        return _read(path, found.st_mtime_ns, found.st_size)

    def given(self, section: str, names: Collection[str]) -> dict[str, Any]:
        """Return the settings of a process: of the top those that it has, and all of its section.

        What its section has besides is returned too, for the process to refuse by name.
        """
        top = {name: self.values[name] for name in names if name in self.values}
        return {**top, **self.of_section(section)}

    def of_section(self, section: str) -> Mapping[str, Any]:
        """Return what a section says."""
        found: Mapping[str, Any] = self.values.get(section, {})
        return found

    def refuse_strangers(self, names: Mapping[str, Collection[str]]) -> None:
        """Refuse what no process knows; `names` are the settings of each section.

        Raises: ConfigFileInvalid that names it.
        """
        known = set[str]().union(*names.values())
        for name in self.values:
            if name not in SECTIONS and name not in known:
                raise ConfigFileInvalid(f"{self.path}: {name} is no setting")
        for section in SECTIONS:
            for name in self.of_section(section):
                if name not in names[section]:
                    raise ConfigFileInvalid(f"{self.path}: [{section}] has no setting {name}")


def use_config_file(path: str) -> None:
    """Let this process and its children read a file."""
    os.environ[CONFIG_VARIABLE] = path


def variable_of(name: str) -> str | None:
    """Return the variable that gives a setting now; None where none does, or it is empty."""
    wanted = f"{_PREFIX}{name.upper()}"
    given = (key for key, value in os.environ.items() if value and key.upper() == wanted)
    return next(given, None)


def mistyped_variables(names: Collection[str]) -> dict[str, str]:
    """Return variables that are nearly those of settings, and which each may be meant to be."""
    found = dict[str, str]()
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(_PREFIX).lower()
        if variable.upper().startswith(_PREFIX) and name not in names:
            for meant in difflib.get_close_matches(name, names, 1, _LIKENESS):
                found[variable] = f"{_PREFIX}{meant.upper()}"
    return found


@lru_cache(maxsize=4)
def _read(path: str, modified_ns: int, size: int) -> ConfigFile:
    """Read a file once, and again when it has changed. Raises: ConfigFileInvalid."""
    del modified_ns, size
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigFileInvalid(f"{path}: {error.strerror}") from None
    except ValueError as error:
        # Of TOML, or of UTF-8; the first tells line and column, and quotes no value.
        raise ConfigFileInvalid(f"{path} is no TOML: {error}") from None
    for name, value in values.items():
        if (name in SECTIONS) != isinstance(value, dict):
            told = (
                "a table, [client.tenant_weights] for instance" if isinstance(value, dict) else ""
            )
            reason = f"stands in a section where it is {told}" if told else "is a section"
            raise ConfigFileInvalid(f"{path}: {name} {reason}")
    return ConfigFile(path, values)
