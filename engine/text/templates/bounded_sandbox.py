"""The sandbox of chat templates: jinja2's for templates from strangers, with bounds.

jinja2 keeps a template from what is not its own, and leaves time and memory to the caller. Here a
rendering has so much processor time, looked at in each turn of a loop and at each call of a
macro, and what it makes of texts and lists has a size, looked at before it is made.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jinja2.runtime import Context

# Far above the longest prompts, and what they take.
_MAX_SIZE, _MAX_RENDER_S = 2**26, 5.0
# A power of so many bits is no number that a template counts with.
_MAX_BITS = 4096
_SPENT_AT: ContextVar[float] = ContextVar("processor time at which a rendering ends")
# What makes texts and lists longer by a number that it is given, or than all it is given.
_GROWING = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "batch",
            "slice", "tojson", "round")  # fmt: skip
# A width of seven digits, or one that is given beside the format.
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\d{7}|\*)")
_WIDE_BRACES = re.compile(r"\{[^}]*(\d{7}|\{)")


class RenderingEndless(TemplateError):
    """The processor time of a rendering is spent."""


class BoundedSandbox(SandboxedEnvironment):
    """Compiles templates that end, and whose values keep to a size."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))

    def __init__(self, **settings: Any) -> None:
        """Set it up as jinja2's own."""
        super().__init__(**settings)
        for name in (*_GROWING, "replace", "format"):
            if name in self.filters:
                self.filters[name] = _bounded(name, self.filters[name])

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Give what is rendered inside, in this thread, its processor time."""
        token = _SPENT_AT.set(time.thread_time() + _MAX_RENDER_S)
        try:
            yield
        finally:
            _SPENT_AT.reset(token)

    def count_turn(self) -> str:
        """End a rendering whose time is spent."""
        if time.thread_time() > _SPENT_AT.get():
            raise RenderingEndless(f"it renders for more than {_MAX_RENDER_S:g} s")
        return ""

    def joined(self, *parts: Any) -> str:
        """Return what `~` makes of values."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, unless what comes of it has no bounds."""
        if operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * abs(right), _MAX_BITS)
        elif operator == "%" and isinstance(left, str):
            _check_format(_WIDE_PERCENT, left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: Any, /, *given: Any, **named: Any) -> Any:
        """Call, unless a method of a text or a list makes something without bounds of it."""
        owner = getattr(called, "__self__", None)
        if isinstance(owner, (str, list)):
            _check_growth(called.__name__, owner, (*given, *named.values()))
        return super().call(context, called, *given, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return jinja2's own way to format, unless the format is too wide."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(_WIDE_BRACES, str(value.__self__))
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Bounding().visit(super()._parse(source, name, filename))
        turn = nodes.Call(nodes.EnvironmentAttribute("count_turn"), [], [], None, None)
        looped: Any = parsed.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for node in looped:
            node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno, override=True))
        parsed.set_environment(self)
        return parsed


class _Bounding(NodeTransformer):
    """Has the sandbox join what jinja2 would join by itself."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2 names it
        """Replace `~`."""
        self.generic_visit(node)
        joined = nodes.EnvironmentAttribute("joined")
        return nodes.Call(joined, node.nodes, [], None, None).set_lineno(node.lineno)


def _bounded(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that looks at what it is given first."""

    @wraps(own)
    def bounded(*given: Any, **named: Any) -> Any:
        values = [value for value in given if isinstance(value, (str, int, list))]
        _check_growth(name, values[0] if values else "", (*values[1:], *named.values()))
        return own(*given, **named)

    return bounded


def _check_growth(name: str, value: Any, given: tuple[Any, ...]) -> None:
    if name == "replace" and isinstance(value, str) and len(given) > 1:
        _check_size(len(value) + value.count(str(given[0])) * len(str(given[1])))
    elif name == "join" and given and isinstance(given[0], list):
        _check_size(len(value) * len(given[0]) + sum(map(_size, given[0])))
    elif name == "extend":
        _check_size(len(value) + sum(map(_size, given)))
    elif name == "format" and isinstance(value, str):
        _check_format(_WIDE_PERCENT, value)
    elif name in _GROWING:
        lines = value.count("\n") + 1 if isinstance(value, str) else 1
        for count in given:
            if isinstance(count, int):
                _check_size(lines * abs(count))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_size(left.bit_length() + right.bit_length(), _MAX_BITS)
    elif isinstance(left, int) or isinstance(right, int):
        count = left if isinstance(left, int) else right
        _check_size(_size(right if isinstance(left, int) else left) * abs(count))


def _check_format(wide: re.Pattern[str], text: str) -> None:
    if wide.search(text):
        raise TemplateError("it formats with a width of millions, or one that it computes")


def _check_size(size: int, most: int = _MAX_SIZE) -> None:
    if size > most:
        raise TemplateError("it makes a text, a list or a number without bounds")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0
