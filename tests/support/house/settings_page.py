"""The tables of `docs/settings.md`: made of the settings and of what stands below each.

Run as a script it writes them.
"""

from __future__ import annotations

import ast
import inspect
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from house.modules import parsed
from house.pages import with_table
from pydantic_core import PydanticUndefined

from tokenbus.engine.config import engine_settings
from tokenbus.producer.commands.cli import settings_classes

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from tokenbus.producer.settings import BusSettings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "settings.md"
HEADINGS = {
    "Client": "client",
    "Worker": "worker",
    "Gateway": "gateway",
    "Control service and adapter": "control",
}
_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length")


def meanings(settings: type[BusSettings]) -> dict[str, str]:
    """Return what each setting of a class means: what stands below it, or its option's help."""
    found = {
        name: f"{each.help[:1].upper()}{each.help[1:]}."
        for name, each in engine_settings().items()
        if each.help
    }
    for base in reversed(settings.__mro__):
        if base.__module__.startswith("tokenbus."):
            found |= _below_fields(base)
    return found


def _below_fields(base: type) -> dict[str, str]:
    source = Path(inspect.getsourcefile(base) or "").read_text(encoding="utf-8")
    found = {}
    for node in parsed(source).body:
        if not isinstance(node, ast.ClassDef) or node.name != base.__name__:
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=text)),
                ):
                    found[name] = " ".join(str(text).split())
    return found


def rows(settings: type[BusSettings]) -> str:
    """Return the settings of a kind of process as Markdown."""
    told = meanings(settings)
    lines = ["| variable | default | values | meaning |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        lines.append(
            f"| `TOKENBUS_{name.upper()}` | {_default(name, field)} | {_values(field)}"
            f" | {told[name]} |"
        )
    return "\n".join(lines) + "\n"


def _default(name: str, field: FieldInfo) -> str:
    declared = engine_settings().get(name)
    if declared is not None and declared.unset:
        return declared.unset
    value = field.get_default(call_default_factory=True)
    if declared is not None and value is None:
        value = declared.default
    if value in (None, (), [], {}, PydanticUndefined):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_bytes") and value >= 2**20:
        return f"`{value}`, {value / 2**20:,.0f} MiB"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    """Return type, choices and bounds."""
    bounds = {
        name: getattr(each, name)
        for each in (*field.metadata, *_inner_metadata(field.annotation))
        for name in _BOUNDS
        if getattr(each, name, None) is not None
    }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le")
    text = _kind(field.annotation)
    if low is not None and high is not None:
        text += f", {'over ' if 'gt' in bounds else ''}{_number(low)} to {_number(high)}"
    elif low is not None:
        text += f", {_number(low)} or more"
    return text


def _number(value: float) -> str:
    """Return a number as a person reads it: sizes of 2^20 and more by their power."""
    if value >= 2**20 and value == 2 ** int(value).bit_length() // 2:
        return f"2^{int(value).bit_length() - 1}"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _inner_metadata(annotation: Any) -> tuple[Any, ...]:
    """Return the bounds of the types in a choice of types."""
    found: tuple[Any, ...] = ()
    for each in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ():
        for told in getattr(each, "__metadata__", ()):
            found += (told, *getattr(told, "metadata", ()))
    return found


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in inner if each is not type(None))
    if hasattr(annotation, "__metadata__"):
        return _kind(inner[0])
    if origin is dict:
        return "object, as JSON"
    if origin in (list, tuple):
        return "list, as JSON"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(annotation, "file")


def written() -> str:
    """Return the page with its tables as the code has them."""
    text, classes = PAGE.read_text(encoding="utf-8"), settings_classes()
    for heading, section in HEADINGS.items():
        text = with_table(text, heading, rows(classes[section]))
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
