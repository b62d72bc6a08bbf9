"""`tokenbus config`: the settings of a process as it would read them here, and their sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import SecretStr

from tokenbus.producer.config_file import SECTIONS, ConfigFile, ConfigFileInvalid, variable_of
from tokenbus.producer.errors import ClientSettingsInvalid
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import BusSettings
from tokenbus.producer.terminal import say, visible

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# By the name of their section in the file.
SettingsClasses = Mapping[str, type[BusSettings]]
HIDDEN = "(set, and not shown)"


@dataclass(frozen=True, slots=True)
class Effective:
    """A setting: its value as text, and whether default, file or variable gives it."""

    name: str
    value: str
    source: str


def check_config_file(classes: SettingsClasses) -> None:
    """Refuse a file with a name that no process knows. Raises: ClientSettingsInvalid."""
    try:
        found = ConfigFile.find()
        if found is not None:
            found.refuse_strangers({name: each.model_fields for name, each in classes.items()})
    except ConfigFileInvalid as error:
        problem = str(error)
    else:
        return
    raise ClientSettingsInvalid(problem)


def run_config(process: str, classes: SettingsClasses, *, as_json: bool, changed: bool) -> int:
    """Print the settings of a kind of process, or with `changed` those that are no defaults.

    Raises: the error with which such a process would refuse them.
    """
    check_config_file(classes)
    shown = [
        each for each in effective(classes[process]) if not changed or each.source != "default"
    ]
    if as_json:
        print(visible(json.dumps([asdict(each) for each in shown], ensure_ascii=False)))
        return 0
    if not shown:
        say(f"all settings of {process} are defaults")
    width = max((len(each.name) for each in shown), default=0)
    values = max((min(len(each.value), 40) for each in shown), default=0)
    for each in shown:
        print(visible(f"{each.name:{width}}  {each.value:{values}}  {each.source}"))
    return 0


def effective(settings_class: type[BusSettings]) -> list[Effective]:
    """Return the settings of a process as it would read them here. Raises: what it would."""
    loaded, found = settings_class.load(), ConfigFile.find()
    return [
        Effective(
            name,
            _shown(name, field, getattr(loaded, name)),
            _source(name, settings_class.section, found),
        )
        for name, field in settings_class.model_fields.items()
    ]


def _source(name: str, section: str, found: ConfigFile | None) -> str:
    variable = variable_of(name)
    if variable is not None:
        return variable
    if found is not None:
        if name in found.of_section(section):
            return f"{found.path} [{section}]"
        if name in found.values and name not in SECTIONS:
            return found.path
    return "default"


def _shown(name: str, field: FieldInfo, value: Any) -> str:
    """Return a value as text, never a secret."""
    if value is None or value in ((), {}, []):
        return "-"
    if name == "redis_url":
        return str(ServerUrl.parse(str(value)))
    if not field.repr or _is_secret(field.annotation):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_secret(annotation: Any) -> bool:
    """Tell whether a type holds a secret anywhere."""
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))
